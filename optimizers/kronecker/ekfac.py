"""K-FAC in the eigenbasis of its factors: exact Tikhonov damping, and scales that are measured there.

Martens & Grosse 2015, arXiv 1503.05671, section 6.3; George, Laurent, Bouthillier, Ballas, Vincent 2018, "Fast
approximate natural gradient descent in a Kronecker-factored eigenbasis", arXiv 1806.03884.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, one_of
from stepscale.optimizers.core.frames import inputs, log_det_gradient, map_back
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.trained import gradient_of
from stepscale.optimizers.kronecker.base import Kronecker, State


class Scales(StrEnum):
    """Where the curvature along the eigenvectors comes from (``EKFAC``)."""

    MEASURED = "measured"
    KRONECKER = "kronecker"


class EKFAC(Kronecker):
    """Q_G [(Q_Gᵀ ∇ Q_A) ⊘ (S + λ)] Q_Aᵀ, O(L (B d² + d³)) a step: two full products a layer to come back.

    The relative frame adds one, and a log-determinant in the Euclidean frame two and an inverse. Q_A and Q_G are the
    eigenvectors of K-FAC's factors, an eigendecomposition each when they are inverted.

    Args:
        model: offers ``capture``, and ``capture_samples`` where statistics come from the model.
        damping: λ, added to S itself: exact Tikhonov.
        scales: of S, ``[dim_out, dim_in (+1)]``: ``"measured"``, the second moments of g x̄ᵀ in the eigenbasis
            (EKFAC; with as little of a log-determinant's −N as K-FAC's factors have), averaged since that was made, or
            ``"kronecker"``, products of the factors' eigenvalues (K-FAC with exact damping).
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        statistics: ``"model"``, the true Fisher, or ``"data"``, the empirical.
        schedule: of statistics and eigendecompositions, and the running averages' decay.

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
        frame: str = "relative",
        statistics: str = "model",
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model, damping=damping, frame=frame, statistics=statistics, log_det="exact", schedule=schedule)
        self.measured = one_of("scales", Scales, scales) is Scales.MEASURED
        if damping == 0:
            raise ValueError("damping must be positive: S has entries of zero, got damping=0")

    def average(self, state: State, io: LayerIO, keep: float) -> None:
        super().average(state, io, keep)
        if self.measured and "S" in state and self.steps % self.schedule.inverse:  # else it is in the old basis
            state["count"] += 1
            state["S"].lerp_(self._scales(io, state), 1 - min(1 - 1 / state["count"].item(), self.schedule.decay))

    def invert(self, io: LayerIO, state: State, fresh: LayerIO | None) -> None:
        d_A, state["Q_A"] = eigenbasis(state["A"])
        d_G, state["Q_G"] = eigenbasis(state["G"])
        state["count"] = torch.tensor(float(self.measured and fresh is not None))  # of batches in S
        if self.measured and fresh is not None:
            state["S"] = self._scales(fresh, state)
        else:  # what comes next replaces it: its count is none
            state["S"] = torch.outer(d_G, d_A)
        if io.log_det and self.relative:
            state["within"] = state["Q_G"].T @ state["Q_A"][: io.layer.in_features]

    def precondition(self, io: LayerIO, state: State) -> None:
        layer, Q_A, Q_G = io.layer, state["Q_A"], state["Q_G"]
        rotated = (io.delta @ Q_G).T @ (inputs(io, self.relative) @ Q_A).div_(len(io.delta))
        if io.log_det and self.relative:
            rotated -= state["within"]
        elif io.log_det:
            rotated -= Q_G.T @ log_det_gradient(layer) @ Q_A[: layer.in_features]
        direction = Q_G @ rotated.div_(state["S"] + self.damping) @ Q_A.T
        if self.relative and io.log_det:
            direction = map_back(direction, layer)
        gradient_of(layer.weight).copy_(direction[:, : layer.in_features])
        if layer.bias is not None:
            gradient_of(layer.bias).copy_(direction[:, layer.in_features])

    def _scales(self, io: LayerIO, state: State) -> Tensor:
        """O(B d²): E[(Q_Gᵀ g)² (Q_Aᵀ x̄)²ᵀ], ``[dim_out, dim_in (+1)]``."""
        P, R = io.delta @ state["Q_G"], inputs(io, self.relative) @ state["Q_A"]
        return P.square_().T @ R.square_() / len(P)


def eigenbasis(M: Tensor) -> tuple[Tensor, Tensor]:
    """O(d³): eigenvalues, none below zero, and eigenvectors of a symmetric positive semi-definite matrix.

    Raises:
        FloatingPointError: it is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("a curvature factor is not finite: lower the learning rate")
    values, vectors = torch.linalg.eigh(M)
    return values.clamp_min(0), vectors
