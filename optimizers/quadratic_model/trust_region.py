"""A trust region for directions that own their momentum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from stepscale.models import Batch, FisherRoots
from stepscale.optimizers.core.step import Mark, Paired, no_mark, require
from stepscale.optimizers.core.tangents import gradients
from stepscale.optimizers.core.update import Update, optimizer_of
from stepscale.optimizers.kronecker.momentum import WithMomentum


class TrustRegion(Paired):
    """A direction with momentum, shortened to η² vᵀF v ≤ κ, and an update; O(B P) beside them, O(L d³) on the flow.

    v is the momentum behind the inverses, and F the true Fisher matrix of the batch, so that a step changes the model's
    distribution by about κ/2 nats at most. The momentum itself is shortened with the step: old gradients lie along
    directions that have since become stiff, and shortening the step alone leaves them there. ``KLClipped`` looks at
    Dᵀ∇ in its place, which need not see it, and stands before the update's momentum.

    Args:
        model: what both are built with; offers ``fisher_roots``.
        direction: builds a direction of the ``kronecker`` family with ``momentum``.
        update: builds a torch optimizer without a momentum of its own; η is its learning rate.
        kappa: κ.

    Raises:
        ValueError: ``kappa`` is not positive.
        TypeError: the direction owns no momentum, the update's ``step`` needs a closure, or the model lacks the method.
    """

    def __init__(
        self, model: nn.Module, direction: Callable[[nn.Module], WithMomentum], update: Update, *, kappa: float = 1.0
    ) -> None:
        if not kappa > 0:
            raise ValueError(f"kappa must be positive, got {kappa}")
        self.fisher = require(model, FisherRoots, "trust region's")
        self.moving = direction(model)
        if not isinstance(self.moving, WithMomentum) or not self.moving.momentum:
            raise TypeError(
                f"{type(self.moving).__name__} owns no momentum: give a trust region TNT, Shampoo, MiniBlock, KFAC or "
                "FOOF with momentum above 0"
            )
        super().__init__(self.moving, optimizer_of(model, update))
        if self.closure is not None:
            raise TypeError(
                f"{type(self.update).__name__}.step needs a closure, whose gradients would not be shortened"
            )
        self.kappa = kappa

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.moving.model.capture(batch)
        self.moving.apply(ios, mark)
        self.check_once()
        roots = self.fisher.fisher_roots(ios, [gradients([io.layer for io in ios])])[0]
        change = self.update.param_groups[0]["lr"] ** 2 * roots.square().sum() / len(roots)
        share = (self.kappa / change).sqrt().clamp_max(1)
        self.moving.shrink(share)
        for parameter in self.parameters:
            if parameter.grad is not None:  # one frozen since has none
                parameter.grad.mul_(share)
        self.update.step()
        mark("update")
