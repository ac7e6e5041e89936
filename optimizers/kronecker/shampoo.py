"""Shampoo: a gradient between inverse fourth roots of its own squares.

Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization", ICML, arXiv 1802.09568.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Unpack

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, one_of
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.kronecker.moments import Moments, of_squares
from stepscale.optimizers.kronecker.momentum import MeanGradientOptions, WithMomentum
from stepscale.optimizers.kronecker.two_sided import TwoSided

SCHEDULE = Schedule(statistics=1, inverse=20, decay=0.9)  # as in TNT's comparison


class Accumulation(StrEnum):
    """What becomes of earlier squares: they fade, or stay, as in Adagrad."""

    AVERAGE = "average"
    SUM = "sum"


class Shampoo(WithMomentum):
    """(G + ε I)^(−1/4) m (A + ε I)^(−1/4): O(L (B d² + B² d)), and two eigendecompositions a layer for the roots.

    G and A are running averages or sums of S Sᵀ and SᵀS, S the mean gradient of data; m is momentum, before the roots.
    Rows enter as in ``TNT``, and between two makings of the roots no product is cubic. The roots are made in float64:
    of eigenvalues below 1e-7 of the largest float32 knows nothing, and the power of −1/4 makes much of them.

    Args:
        model: offers ``capture``, or ``loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: ε, absolute.
        momentum: μ, of gradients.
        accumulation: ``"average"``, with the schedule's decay, or ``"sum"``, as published.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        schedule: of squares and roots.
        log_det, form: as ``TNT``.
        shared, rest, statistics_share: as ``KFAC``.

    Raises:
        ValueError, TypeError: as ``KFAC``.
        FloatingPointError: when called, and the parameters have diverged.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1e-2,
        momentum: float = 0.9,
        accumulation: str = "average",
        **options: Unpack[MeanGradientOptions],
    ) -> None:
        options.setdefault("schedule", SCHEDULE)
        super().__init__(model, momentum=momentum, damping=damping, statistics="data", **options)
        self.sums = one_of("accumulation", Accumulation, accumulation) is Accumulation.SUM
        if damping == 0:
            raise ValueError("damping must be positive: the squares have eigenvalues of zero, got damping=0")

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        keep, weight = (1.0, 1.0) if self.sums else (keep, 1 - keep)
        return of_squares(there, io, self.relative, keep, weight, dense=self.dense)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        A, G = moments.both
        return self.kept(TwoSided(inverse_root(A, self.damping, 4), inverse_root(G, self.damping, 4)), io)


def inverse_root(M: Tensor, shift: float, power: int) -> Tensor:
    """O(d³): (M + shift · I)^(−1/power) of a symmetric positive semi-definite M, by eigenvalues in float64.

    Raises:
        FloatingPointError: M is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("a curvature factor is not finite: lower the learning rate")
    values, vectors = torch.linalg.eigh(M.double())
    return ((vectors * (values.clamp_min(0) + shift) ** (-1 / power)) @ vectors.T).to(M.dtype)
