"""KL clipping of a direction.

Ba, Grosse & Martens 2017, and Wu et al. 2017, arXiv 1708.05144, section 3.2: a step is shortened so that it changes
the distribution by little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from stepscale.models import LayerIO, slopes
from stepscale.optimizers.core.tangents import gradients
from stepscale.optimizers.core.update import Update
from stepscale.optimizers.kronecker.base import Kronecker
from stepscale.optimizers.quadratic_model.kfac_step import kronecker_of
from stepscale.optimizers.quadratic_model.shortened import Shortened


class KLClipped(Shortened[Kronecker[Any]]):
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
        TypeError: the direction is no ``Kronecker`` one, or goes by the last step, or the update's ``step`` needs a
            closure.
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Callable[[nn.Module], Kronecker[Any]],
        update: Update,
        *,
        kappa: float = 1e-3,
    ) -> None:
        super().__init__(model, kronecker_of(model, direction), update, kappa)

    def change(self, ios: list[LayerIO]) -> Tensor:
        return slopes(ios, gradients([io.layer for io in ios])).mean().abs()
