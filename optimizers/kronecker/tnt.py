"""TNT, tensor-normal training: the covariance of a batch's mean gradient as a Kronecker product of its two sides.

Ren & Goldfarb 2021, "Tensor normal training for deep learning models", NeurIPS, arXiv 2106.02925.
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from stepscale.models import LayerIO
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.kronecker.moments import Moments, of_squares
from stepscale.optimizers.kronecker.momentum import MeanGradientOptions, WithMomentum
from stepscale.optimizers.kronecker.two_sided import TwoSided

SCHEDULE = Schedule(statistics=1, inverse=20, decay=0.9, eager=20)  # the authors'


class TNT(WithMomentum):
    """(U + ε I)⁻¹ m (V + ε I)⁻¹: O(L (B d² + B² d)), and O(L d³) an inversion; m is momentum, before the inverses.

    U ⊗ V = G ⊗ A / tr G with G and A running averages of B S Sᵀ and B SᵀS, S the mean gradient of targets drawn from
    the model, so that tr(U ⊗ V) = B E‖S‖², the Fisher matrix's trace. Fewer rows than about 0.6 d enter by Gram
    matrices of rows, and between inversions no product is cubic, where the authors' code does eight a layer and step.
    With a log-determinant the relative frame has one product of d³, by which v is mapped back.

    The authors leave out the factor B: their ε and learning rate are √B ε and B lr here. They average over an epoch
    before the first step, and treat a bias apart, where it is a column of S here.

    Args:
        model: as ``KFAC``.
        damping: ε, added to both factors.
        momentum: μ, of gradients.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        statistics: ``"model"``, or ``"data"``: then without the factor B.
        schedule: of statistics and inverses, and the running averages' decay; the authors' where none is given.
        log_det: ``"exact"``, or without momentum ``"stale"``, as of ``KFAC``: then no product between inversions is d³,
            but for the LU a layer of a flow's samples.
        form: ``"factored"``, or ``"dense"``, which writes the same by whole products, as the authors' code does: 8 d³ a
            layer and step.
        shared, rest, statistics_share: as ``KFAC``.

    Raises:
        ValueError, TypeError, FloatingPointError, torch.linalg.LinAlgError: as ``KFAC``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1.0,
        momentum: float = 0.9,
        statistics: str = "model",
        **options: Unpack[MeanGradientOptions],
    ) -> None:
        options.setdefault("schedule", SCHEDULE)
        super().__init__(model, momentum=momentum, damping=damping, statistics=statistics, **options)

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        scale = 1 if self.sampler is None else io.samples  # data's mean gradient is not zero in expectation
        return of_squares(there, io, self.relative, keep, (1 - keep) * scale, dense=self.dense)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        U, V = normalised(*moments.both)
        return self.kept(TwoSided(cholesky_inverse(V, self.damping), cholesky_inverse(U, self.damping)), io)


def normalised(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """O(d²): U and V, G and A scaled to one mean eigenvalue, so that U ⊗ V = G ⊗ A / tr G; of a zero G themselves."""
    mean = (G.trace() / (len(G) * len(A))).sqrt()
    mean = mean.where((mean > 0) & mean.isfinite(), 1.0)
    return G / (mean * len(A)), A / (mean * len(G))
