"""KL clipping of a direction.

Ba, Grosse & Martens 2017, and Wu et al. 2017, arXiv 1708.05144, section 3.2: a step is shortened so that it changes
the distribution by little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stepscale.models import Batch, slopes
from stepscale.optimizers.core.step import Mark, Paired, no_mark
from stepscale.optimizers.core.tangents import gradients
from stepscale.optimizers.core.update import Update, optimizer_of
from stepscale.optimizers.kronecker.base import Kronecker
from stepscale.optimizers.quadratic_model.kfac_step import kronecker_of


class KLClipped(Paired):
    """A direction shortened so that η² Dᵀ∇ ≤ κ, and an update; O(B P) beside them, O(L d³) where log-determinants are.

    Dᵀ∇ is about Dᵀ F D for a natural direction D, so
    that a step of plain descent, ηD, changes the model's distribution by about κ/2 nats at most.

    Args:
        model: what both are built with.
        direction: builds a ``Kronecker`` direction.
        update: builds a torch optimizer; η is its learning rate.
        kappa: κ.

    Raises:
        ValueError: ``kappa`` is not positive.
        TypeError: the direction is no ``Kronecker`` one, or the update's ``step`` needs a closure.
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Callable[[nn.Module], Kronecker[Any]],
        update: Update,
        *,
        kappa: float = 1e-3,
    ) -> None:
        if not kappa > 0:
            raise ValueError(f"kappa must be positive, got {kappa}")
        self.natural = kronecker_of(model, direction)
        super().__init__(self.natural, optimizer_of(model, update))
        if self.closure is not None:
            raise TypeError(f"{type(self.update).__name__}.step needs a closure, whose gradients would not be clipped")
        self.kappa = kappa

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.natural.model.capture(batch)
        self.natural.apply(ios, mark)
        self.check_once()
        tangents = gradients([io.layer for io in ios])
        change = self.update.param_groups[0]["lr"] ** 2 * slopes(ios, tangents).mean().abs()
        share = (self.kappa / change).sqrt().clamp_max(1)
        for parameter in self.parameters:
            if parameter.grad is not None:  # one frozen since has none
                parameter.grad.mul_(share)
        self.update.step()
        mark("update")
