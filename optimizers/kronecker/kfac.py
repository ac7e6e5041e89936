"""K-FAC: Kronecker-factored natural gradient, on layered networks and on invertible ones.

Martens & Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature", arXiv 1503.05671.

Where the loss holds log-determinants, the density is of the rows themselves: no input may be taken from data, and the
true Fisher is an expectation over model samples of everything. The factors stay plain second moments, with no
subtraction of the log-determinant's rank-one term vec(V) vec(V)ᵀ: the Kronecker approximation less that term is
generally indefinite.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO
from stepscale.optimizers.core.low_rank import Symmetric, randomized_inverse
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.kronecker.base import Options
from stepscale.optimizers.kronecker.moments import Moments
from stepscale.optimizers.kronecker.momentum import WithMomentum
from stepscale.optimizers.kronecker.two_sided import TwoSided


class KFAC(WithMomentum):
    """G⁻¹ ∇ A⁻¹: O(L (B d² + d³)), O(L d³) an inversion; of rank k, or with no or stale log-determinants, O(L B d²).

    Damping is factored Tikhonov's. Statistics from model samples cost another backward pass, on the flow an LU a
    layer, O(L (B d² + d³)). With ``rank`` no inverse is formed: an inversion costs O(L k d²), a step in the relative
    frame O(L (B + k) d²); in the Euclidean one a log-determinant's W⁻ᵀ is O(d³). Memory O(L d²).

    Args:
        model: offers ``capture``, and ``capture_samples`` where statistics come from the model; or ``loss``, and
            ``sampled_loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: λ, split over the factors by factored Tikhonov with π (section 6.3); 0 for none.
        rank: k of randomised low-rank inverses (Puiu 2022, arXiv 2206.15397, by Halko, Martinsson & Tropp 2011); None
            for Cholesky's.
        frame: ``"relative"``, for invertible layers: equivariant to mixing of the data even when damped; or
            ``"euclidean"``.
        statistics: ``"model"``, samples of the model: the true Fisher; or ``"data"``: the empirical Fisher.
        log_det: ``"exact"``, without ``rank`` one d³ product a layer and step, or ``"stale"``: the log-determinant's
            part as it was when the inverses were last computed, and no d³ in between. Nothing where the loss holds no
            log-determinant.
        schedule: of statistics and inverses, and the running averages' decay.
        shared: of rows that have one weight, as tokens: ``"expand"``, each by itself, or ``"reduce"``, the mean of the
            inputs and the sum of the gradients (``Sharing``).
        rest: of parameters that hooks have no rule for: ``"refuse"``, or ``"gradient"``, theirs as it is.
        statistics_share: of a batch's samples, the first, by which the factors are updated (τ₁ in section 8).
        momentum: μ of gradients, before the inverses (``momentum.py``); 0 leaves momentum to the update.

    Raises:
        ValueError: an option or a number is out of its range; or, when called again, parameters have been frozen or
            freed since.
        TypeError: the model lacks a method, or its layers a log-determinant that the relative frame needs.
        FloatingPointError: when called, and the parameters have diverged.
        torch.linalg.LinAlgError: when called, and a damped factor is not positive definite; raise ``damping``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.1,
        rank: int | None = None,
        statistics: str = "model",
        log_det: str = "exact",
        momentum: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, momentum=momentum, damping=damping, statistics=statistics, log_det=log_det, **options)
        if rank is not None and (rank < 1 or damping == 0):
            raise ValueError(
                f"rank must be at least 1 and needs damping for what it leaves out, got rank={rank}, damping={damping}"
            )
        self.rank = rank

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        A, G = moments.both
        A_shift, G_shift = factored_damping(A, G, self.damping)
        return self.kept(TwoSided(self._inverse(A, A_shift), self._inverse(G, G_shift)), io)

    def _inverse(self, M: Tensor, shift: Tensor) -> Symmetric:
        return cholesky_inverse(M, shift) if self.rank is None else randomized_inverse(M, shift, self.rank)


def factored_damping(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """O(d): π √λ and √λ / π, what to add to the diagonals of A and G; π² = (tr A / dim A) / (tr G / dim G).

    Martens & Grosse 2015, section 6.3.
    """
    ratio = A.diagonal().mean() / G.diagonal().mean()
    pi = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0).sqrt()  # a layer may get no gradient at all
    root = math.sqrt(damping)
    return pi * root, root / pi
