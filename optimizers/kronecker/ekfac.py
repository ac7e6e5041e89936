"""K-FAC in the eigenbasis of its factors: exact Tikhonov damping, and scales that are measured there.

Martens & Grosse 2015, arXiv 1503.05671, section 6.3; George, Laurent, Bouthillier, Ballas, Vincent 2018, "Fast
approximate natural gradient descent in a Kronecker-factored eigenbasis", arXiv 1806.03884.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Unpack

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, one_of
from stepscale.optimizers.core.frames import inputs, log_det_gradient, map_back, write_whole
from stepscale.optimizers.core.step import StateDict
from stepscale.optimizers.kronecker.base import Kronecker, Options
from stepscale.optimizers.kronecker.moments import Moments


class Scales(StrEnum):
    """Where the curvature along the eigenvectors comes from (``EKFAC``)."""

    MEASURED = "measured"
    KRONECKER = "kronecker"


@dataclass
class Rotated:
    """D ↦ Q_G [(Q_Gᵀ D Q_A) ⊘ (S + λ)] Q_Aᵀ for one layer."""

    Q_A: Tensor
    Q_G: Tensor
    S: Tensor  # [dim_out, dim_in (+1)], averaged in place
    count: Tensor  # of batches in S
    within: Tensor | None  # Q_Gᵀ [I, 0] Q_A, the log-determinant's part of the relative frame

    def average(self, io: LayerIO, relative: bool, decay: float) -> None:
        """O(B d²): take a batch into S."""
        self.count += 1
        found = scales_of(io, relative, self.Q_A, self.Q_G)
        self.S.lerp_(found, 1 - min(1 - 1 / self.count.item(), decay))

    def write(self, io: LayerIO, relative: bool, damping: float) -> None:
        layer, Q_A, Q_G = io.layer, self.Q_A, self.Q_G
        rotated = (io.delta @ Q_G).T @ (inputs(io, relative) @ Q_A).div_(io.samples)
        if self.within is not None:
            rotated -= self.within
        elif io.log_det:
            rotated -= Q_G.T @ log_det_gradient(layer) @ Q_A[: layer.in_features]
        direction = Q_G @ rotated.div_(self.S + damping) @ Q_A.T
        if relative and io.log_det:
            direction = map_back(direction, layer)
        write_whole(layer, direction)

    def state_dict(self) -> StateDict:
        return dict(vars(self))


class EKFAC(Kronecker[Rotated]):
    """Q_G [(Q_Gᵀ ∇ Q_A) ⊘ (S + λ)] Q_Aᵀ, O(L (B d² + d³)) a step: two full products a layer to come back.

    The relative frame adds one, and a log-determinant in the Euclidean frame two and an inverse. Q_A and Q_G are the
    eigenvectors of K-FAC's factors, an eigendecomposition each when they are inverted.

    Args:
        model: offers ``capture``, and ``capture_samples`` where statistics come from the model; or ``loss``, and
            ``sampled_loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: λ, added to S itself: exact Tikhonov.
        scales: of S, ``[dim_out, dim_in (+1)]``: ``"measured"``, the second moments of g x̄ᵀ in the eigenbasis
            (EKFAC; with as little of a log-determinant's −N as K-FAC's factors have), averaged since that was made, or
            ``"kronecker"``, products of the factors' eigenvalues (K-FAC with exact damping).
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        statistics: ``"model"``, the true Fisher, or ``"data"``, the empirical.
        schedule: of statistics and eigendecompositions, and the running averages' decay.
        shared, rest, statistics_share: as ``KFAC``.

    Raises:
        ValueError, TypeError: as ``KFAC``.
        FloatingPointError: when called, and a factor is not finite: the parameters have diverged.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.1,
        scales: str = "measured",
        statistics: str = "model",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, damping=damping, statistics=statistics, **options)
        if self.stale:
            raise ValueError("EKFAC takes the log-determinant's part anew in every step: set log_det=exact")
        self.measured = one_of("scales", Scales, scales) is Scales.MEASURED
        if damping == 0:
            raise ValueError("damping must be positive: S has entries of zero, got damping=0")

    def observe(self, source: list[LayerIO]) -> None:
        super().observe(source)
        if self.measured and self.steps % self.schedule.inverse:  # else the scales are in the old basis
            for io, rotated in zip(source, self.applied, strict=True):
                rotated.average(io, self.relative, self.schedule.decay)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> Rotated:
        A, G = moments.both
        d_A, Q_A = eigenbasis(A)
        d_G, Q_G = eigenbasis(G)
        seen = fresh if self.measured else None
        # without a batch, what comes next replaces the scales: their count is none
        S = torch.outer(d_G, d_A) if seen is None else scales_of(seen, self.relative, Q_A, Q_G)
        rows = Q_A[: io.layer.in_features]
        within = Q_G.T @ rows if io.log_det and self.relative else None
        return Rotated(Q_A, Q_G, S, torch.tensor(float(seen is not None)), within)

    def restored(self, saved: StateDict) -> Rotated:
        return Rotated(**saved)


def scales_of(io: LayerIO, relative: bool, Q_A: Tensor, Q_G: Tensor) -> Tensor:
    """O(B d²): E[(Q_Gᵀ g)² (Q_Aᵀ x̄)²ᵀ], ``[dim_out, dim_in (+1)]``."""
    P, R = io.delta @ Q_G, inputs(io, relative) @ Q_A
    return P.square_().T @ R.square_() / io.samples


def eigenbasis(M: Tensor) -> tuple[Tensor, Tensor]:
    """O(d³): eigenvalues, none below zero, and eigenvectors of a symmetric positive semi-definite matrix.

    Raises:
        FloatingPointError: it is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("a curvature factor is not finite: lower the learning rate")
    values, vectors = torch.linalg.eigh(M)
    return values.clamp_min(0), vectors
