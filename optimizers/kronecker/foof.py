"""FOOF, gradient descent on neurons: the input factor's inverse alone.

Benzing 2022, "Gradient descent on neurons and its link to approximate second-order optimization", ICML, arXiv
2201.12250, equation 6 and algorithm 1. A layer's outputs are to move along their own gradients; no label and no output
factor enters, so one sweep of statistics and one inverse a layer is half of K-FAC's.
"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from stepscale.models import LayerIO
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.kronecker.base import Options
from stepscale.optimizers.kronecker.moments import Moments, of_inputs
from stepscale.optimizers.kronecker.momentum import WithMomentum
from stepscale.optimizers.kronecker.two_sided import TwoSided


class FOOF(WithMomentum):
    """∇ (A + λ I)⁻¹: O(L (B d² + d³)), and O(L d³) an inversion. Without log-determinants or with stale ones O(L B d²).

    A is the mean of x̄ x̄ᵀ over data. In the relative frame and undamped it is the relative gradient where E[u uᵀ] = I,
    u = a Wᵀ: that takes the input covariance from the model instead of measuring it. The paper omits biases; here they
    are in x̄. It sums over a batch where this takes means: its λ and learning rate are ours times B. Its momentum stands
    before the inverse, as ``momentum`` does.

    Args:
        model: offers ``capture``; or ``loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: λ; the paper's 100 at B = 100 is 1.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        log_det: ``"exact"``, one d³ product a layer and step, or ``"stale"``, as of the last inversion.
        schedule: of statistics and inverses, and the running average's decay.
        shared, rest, statistics_share, momentum: as ``KFAC``.

    Raises:
        ValueError, TypeError, FloatingPointError, torch.linalg.LinAlgError: as ``KFAC``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1.0,
        log_det: str = "exact",
        momentum: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, momentum=momentum, damping=damping, statistics="data", log_det=log_det, **options)

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        return of_inputs(there, io, self.relative, keep)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        return self.kept(TwoSided(cholesky_inverse(moments.A, self.damping)), io)
