"""Mini-block Fisher: one block for all rows of a weight, the average over its outputs.

Bahamou, Goldfarb & Ren 2023, "A mini-block Fisher method for deep neural networks", AISTATS, arXiv 2202.04124.
"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from stepscale.models import LayerIO
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.kronecker.base import Options
from stepscale.optimizers.kronecker.moments import Moments, of_mean_gradients
from stepscale.optimizers.kronecker.momentum import WithMomentum
from stepscale.optimizers.kronecker.two_sided import TwoSided

SCHEDULE = Schedule(statistics=1, inverse=20, decay=0.9)  # as in TNT's comparison


class MiniBlock(WithMomentum):
    """m (A + λ I)⁻¹: O(L (B d² + B² d)), and O(L d³) an inversion; A is the average over outputs of a row's block.

    A averages SᵀS / dim_out, S the mean gradient of data: the empirical Fisher matrix of one row of the weight, taken
    to be the same for all. m is momentum, before the inverse. Rows enter as in ``TNT``, and between inversions no
    product is cubic. That one block serves all rows of a weight is how the paper's experiments are said to treat affine
    layers, whose blocks would take dim_out · dim_in² numbers; its code is not public.

    Args:
        model: offers ``capture``, or ``loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: λ.
        momentum: μ, of gradients.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        schedule: of statistics and inverses, and the running average's decay.
        shared, rest, statistics_share: as ``KFAC``.

    Raises:
        ValueError, TypeError, FloatingPointError, torch.linalg.LinAlgError: as ``KFAC``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1e-2,
        momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        options.setdefault("schedule", SCHEDULE)
        super().__init__(model, momentum=momentum, damping=damping, statistics="data", **options)

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        return of_mean_gradients(there, io, self.relative, keep, (1 - keep) / io.delta.shape[1], both=False)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        return TwoSided(cholesky_inverse(moments.A, self.damping)).keeping_log_det(io, self.relative, self.stale)
