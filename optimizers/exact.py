"""Exact Euclidean gradients by automatic differentiation: the naive baseline and the honest one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from stepscale.models import Batch
from stepscale.optimizers.step import Mark, Stateless, no_mark, require


class Layerwise(Stateless):
    """O(L (B d² + d³)): autodiff through ``model.loss``, on ``Flow`` one ``slogdet`` a layer.

    The honest baseline. It needs nothing but ``loss``, so it serves any model.
    """

    def __init__(self, model: nn.Module) -> None:
        require(model, "loss", "layerwise")
        self.model: Any = model

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.model.loss(batch).backward()
        mark("gradient")


class Jacobian(Stateless):
    """O(B L d³) time, O(B d²) memory: autodiff through the full Jacobian and a ``slogdet`` of every sample.

    What one writes without using the structure of the model; the naive baseline.
    """

    def __init__(self, model: nn.Module) -> None:
        for method in ("forward", "base_log_prob"):
            require(model, method, "jacobian")
        self.model: Any = model

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        jacobian_loss(self.model, batch).backward()
        mark("gradient")


def jacobian_loss(model: Any, x: Batch) -> Tensor:
    """Mean negative log-likelihood through ∂z/∂x of each sample, ``[batch, dim, dim]``, in nats."""

    def noise(row: Tensor) -> tuple[Tensor, Tensor]:
        z = model(row.unsqueeze(0)).squeeze(0)
        return z, z

    jacobians, z = vmap(jacrev(noise, has_aux=True))(x)
    return -(model.base_log_prob(z) + torch.linalg.slogdet(jacobians).logabsdet).mean()
