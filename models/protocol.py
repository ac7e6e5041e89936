"""What the optimizers and the harness ask of a model."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

Batch = Tensor | tuple[Tensor, Tensor]
"""``[batch, dim]``, or inputs and targets."""


class LayerIO(NamedTuple):
    """What one affine layer ``y = a Wᵀ + b`` saw in a forward and a backward pass.

    ``delta`` is the per-sample gradient at ``y`` of the loss less its log-determinants, with no 1/B, so that
    ``deltaᵀ a / B`` is that loss's gradient with respect to ``W``.
    """

    layer: nn.Linear
    a: Tensor  # [batch, dim_in]
    u: Tensor  # a Wᵀ, [batch, dim_out]; y itself where there is no bias
    y: Tensor  # [batch, dim_out]
    delta: Tensor  # [batch, dim_out]


class Model(Protocol):
    """The interface a model offers; only ``loss`` is needed, the rest opens more directions to it.

    Implementations are ``torch.nn.Module``s. A direction that needs a part the model lacks refuses with a
    ``TypeError`` naming that part (``stepscale.optimizers.require``).
    """

    def loss(self, batch: Batch) -> Tensor:
        """Exact mean negative log-likelihood of the batch, in nats: a scalar."""
        ...

    def capture(self, batch: Batch) -> list[LayerIO]:
        """Forward and backward pass of the determinant-free part of the loss, first layer first."""
        ...

    def captured_log_prob(self, ios: list[LayerIO]) -> Tensor:
        """O(L B d): log p of a captured batch less its log-determinants, ``[batch]``; for tracking the likelihood."""
        ...

    def log_abs_det(self) -> Tensor:
        """O(L d³): the part of log|det J| that lies in the weights; zero where there is none."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to noise, ``[batch, dim]``; for the full-Jacobian direction."""
        ...

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the noise, ``[batch]``; for the full-Jacobian direction."""
        ...

    def sample(self, n: int) -> Tensor:
        """Draw ``[n, dim]`` from the model; for statistics of the true Fisher."""
        ...

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """Shapes (m, k, n) of the limit's matrix products ``[m, k] × [k, n]``."""
        ...
