"""What the optimizers and the harness ask of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

Batch = Tensor | tuple[Tensor, Tensor]
"""``[batch, dim]``, or inputs and targets."""


def each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Change a batch, or its inputs and its targets."""
    return change(batch) if isinstance(batch, Tensor) else (change(batch[0]), change(batch[1]))


def rows_of(batch: Batch) -> int:
    """How many rows a batch has."""
    return len(batch if isinstance(batch, Tensor) else batch[0])


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
    log_det: bool  # whether the loss holds −log|det W| besides


Tangents = list[tuple[Tensor, Tensor | None]]
"""A direction in the space of the parameters: (dW, db) of each captured layer, db None where it has no bias."""


def slopes(ios: list[LayerIO], tangents: Tangents) -> Tensor:
    """O(B P), and O(d³) a layer with a log-determinant: each row's loss differentiated along a direction, ``[batch]``.

    Its mean over the rows is the inner product of the gradient and the direction; no gradient is formed.
    """
    total = ios[0].y.new_zeros(len(ios[0].y))
    for io, (dW, db) in zip(ios, tangents, strict=True):
        rate = io.a @ dW.T if db is None else torch.addmm(db, io.a, dW.T)
        total = total + (io.delta * rate).sum(1)
        if io.log_det:
            total = total - torch.linalg.solve(io.layer.weight, dW).trace()
    return total


class Model(Protocol):
    """The interface a model offers; only ``loss`` is needed, the rest opens more directions to it.

    Implementations are ``torch.nn.Module``s. One whose likelihood is of targets given inputs, not of the rows, says so
    by an attribute ``conditional = True``: bits per dim and densities are then left out. A direction that needs a part
    the model lacks refuses with a ``TypeError`` naming that part (``stepscale.optimizers.require``).
    """

    def loss(self, batch: Batch) -> Tensor:
        """Exact mean negative log-likelihood of the batch, in nats: a scalar."""
        ...

    def capture(self, batch: Batch) -> list[LayerIO]:
        """Forward and backward pass of the determinant-free part of the loss, first layer first.

        It is called under ``torch.no_grad``; one that uses autograd opens ``torch.enable_grad`` itself.
        """
        ...

    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        """As many samples of the model, captured, for the true Fisher; given inputs keep theirs and draw targets."""
        ...

    def fisher_roots(self, ios: list[LayerIO], directions: Sequence[Tangents]) -> list[Tensor]:
        """X v for each direction v, ``[batch, …]``, with XᵀX / batch the true Fisher matrix at the captured inputs."""
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
        """Draw ``[n, dim]`` from the model; for pictures."""
        ...

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """Shapes (m, k, n) of the limit's matrix products ``[m, k] × [k, n]``."""
        ...
