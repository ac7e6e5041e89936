"""A trust region for directions that own their momentum."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from stepscale.models import FisherRoots, LayerIO
from stepscale.optimizers.core.step import require
from stepscale.optimizers.core.tangents import gradients
from stepscale.optimizers.core.update import Update
from stepscale.optimizers.kronecker.momentum import WithMomentum
from stepscale.optimizers.quadratic_model.shortened import Shortened


class TrustRegion(Shortened[WithMomentum]):
    """A direction with momentum, shortened to η² vᵀF v ≤ κ, and an update; O(B P) beside them, O(L d³) on the flow.

    v is the momentum behind the inverses, and F the true Fisher matrix of the batch, so that a step changes the model's
    distribution by about κ/2 nats at most. The momentum itself is shortened with the step: old gradients lie along
    directions that have since become stiff, and shortening the step alone leaves them there. ``KLClipped`` looks at
    Dᵀ∇ in its place, which need not see it, and stands before the update's momentum.

    Args:
        model: what both are built with; offers ``fisher_roots``.
        direction: builds a direction of the ``kronecker`` family with ``momentum``.
        update: builds a torch optimizer that goes by η times ``.grad``, and has no momentum; η is its learning rate.
        kappa: κ.

    Raises:
        ValueError: ``kappa`` is not positive, or the update has a momentum.
        TypeError: the direction owns no momentum, the update's ``step`` needs a closure, or the model lacks the method.
    """

    def __init__(
        self, model: nn.Module, direction: Callable[[nn.Module], WithMomentum], update: Update, *, kappa: float = 1.0
    ) -> None:
        self.fisher = require(model, FisherRoots, "trust region's")
        moving = direction(model)
        if not isinstance(moving, WithMomentum) or not moving.momentum:
            raise TypeError(
                f"{type(moving).__name__} owns no momentum: give a trust region TNT, Shampoo, MiniBlock, KBFGS, KFAC "
                "or FOOF with momentum above 0"
            )
        super().__init__(model, moving, update, kappa)
        if any(group.get("momentum") or "betas" in group for group in self.update.param_groups):
            raise ValueError(
                f"{type(self.update).__name__} has a momentum of its own, which is not shortened: "
                "take torch.optim.SGD with momentum=0"
            )

    def change(self, ios: list[LayerIO]) -> Tensor:
        roots = self.fisher.fisher_roots(ios, [gradients([io.layer for io in ios])])[0]
        return roots.square().sum() / len(roots)

    def shorten(self, share: Tensor) -> None:
        super().shorten(share)
        self.natural.shrink(share)
