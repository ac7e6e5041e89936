"""Exact Euclidean gradients by automatic differentiation: the naive baseline and the honest one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from stepscale.models import Batch, HasLoss, Invertible, LogDet
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require


class Layerwise(Stateless):
    """O(L (B d² + d³)): autodiff through ``model.loss``, on ``Flow`` one LU a layer, for value and gradient.

    The honest baseline. It needs nothing but ``loss``, so it serves any model.
    """

    facts = Facts(log_det=LogDet.EXACT)

    def __init__(self, model: nn.Module) -> None:
        self.model = require(model, HasLoss, "layerwise")

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.model.loss(batch).backward()
        mark("gradient")


class Jacobian(Stateless):
    """O(B L d³) time, O(B d²) memory: autodiff through the full Jacobian and a ``slogdet`` of every sample.

    What one writes without using the structure of the model; the naive baseline.
    """

    facts = Facts(log_det=LogDet.EXACT)

    def __init__(self, model: nn.Module) -> None:
        self.model = require(model, Invertible, "jacobian")
        self.checked = False

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        loss, jacobians, log_dets = jacobian_loss(self.model, batch)
        if not self.checked:
            check_log_dets(jacobians.detach(), log_dets.detach())
            self.checked = True
        loss.backward()
        mark("gradient")


def check_log_dets(matrices: Tensor, log_dets: Tensor) -> None:
    """O(B d³): hold log-determinants of a batch against those of its matrices one by one.

    After ``torch.set_num_threads`` batched LU can be silently wrong on CPU (torch 2.13: issues 141358 and 142815).

    Raises:
        RuntimeError: they differ.
    """
    single = torch.stack([torch.linalg.slogdet(matrix).logabsdet for matrix in matrices])
    if not torch.allclose(single, log_dets, rtol=1e-2, atol=1e-1, equal_nan=True):
        worst = (single - log_dets).abs().max().item()
        raise RuntimeError(f"torch's batched slogdet is off by {worst:.3g}: set threads by OMP_NUM_THREADS instead")


def jacobian_loss(model: Invertible, x: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mean negative log-likelihood in nats, ∂z/∂x of each sample ``[batch, dim, dim]``, its log|det| ``[batch]``."""

    def noise(row: Tensor) -> tuple[Tensor, Tensor]:
        z = model(row.unsqueeze(0)).squeeze(0)
        return z, z

    jacobians, z = vmap(jacrev(noise, has_aux=True))(x)
    log_dets = torch.linalg.slogdet(jacobians).logabsdet
    return -(model.base_log_prob(z) + log_dets).mean(), jacobians, log_dets
