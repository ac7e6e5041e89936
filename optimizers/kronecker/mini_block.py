"""Mini-block Fisher: one block for each row of a weight, or one for all of them, the average over its outputs.

Bahamou, Goldfarb & Ren 2023, "A mini-block Fisher method for deep neural networks", AISTATS, arXiv 2202.04124.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Unpack

from torch import Tensor, nn

from stepscale.models import LayerIO, one_of
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.kronecker.moments import Moments, mean_gradient, of_rows, of_squares
from stepscale.optimizers.kronecker.momentum import Form, MeanGradientOptions, WithMomentum
from stepscale.optimizers.kronecker.two_sided import TwoSided

SCHEDULE = Schedule(statistics=1, inverse=20, decay=0.9, eager=20)  # as TNT's


class Blocks(StrEnum):
    """What has a block of its own: all rows of a weight together, or each."""

    SHARED = "shared"
    ROWS = "rows"


class MiniBlock(WithMomentum):
    """m (A + λ I)⁻¹: O(L (B d² + B² d)), and O(L d³) an inversion; A is the average over outputs of a row's block.

    A averages SᵀS / dim_out, S the mean gradient of data: the empirical Fisher matrix of one row of the weight, taken
    to be the same for all. m is momentum, before the inverse. Rows enter as in ``TNT``, and between inversions no
    product is cubic. That one block serves all rows of a weight is how the paper's experiments are said to treat affine
    layers, whose blocks would take dim_out · dim_in² numbers; its code is not public.

    With ``blocks="rows"`` each row has its own, by definition: O(L d³) a step, O(L d⁴) an inversion and O(L d³) memory,
    4.3 GB a layer at d = 1024 in float32, and as much for the inverses. It is for small layers.

    Args:
        model: offers ``capture``, or ``loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: λ.
        momentum: μ, of gradients.
        blocks: ``"shared"``, or ``"rows"``, which has the dense form alone.
        limit_gb: of a layer's blocks by rows, in 1e9 bytes; a layer that wants more is refused.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        schedule: of statistics and inverses, and the running average's decay.
        log_det, form: as ``TNT``.
        shared, rest, statistics_share: as ``KFAC``.

    Raises:
        ValueError, TypeError, FloatingPointError, torch.linalg.LinAlgError: as ``KFAC``.
        MemoryError: when called, and a layer's blocks are more than ``limit_gb``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1e-2,
        momentum: float = 0.9,
        blocks: str = "shared",
        limit_gb: float = 4.0,
        **options: Unpack[MeanGradientOptions],
    ) -> None:
        options.setdefault("schedule", SCHEDULE)
        self.rows, self.limit_gb = one_of("blocks", Blocks, blocks) is Blocks.ROWS, limit_gb
        if self.rows and options.setdefault("form", Form.DENSE) == Form.FACTORED:
            raise ValueError("blocks=rows has a matrix for each row of a gradient, which is formed: set form=dense")
        super().__init__(model, momentum=momentum, damping=damping, statistics="data", **options)

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        if not self.rows:
            weight = (1 - keep) / io.delta.shape[1]
            return of_squares(there, io, self.relative, keep, weight, both=False, dense=self.dense)
        S = mean_gradient(io, self.relative)
        if there is None:
            refuse_large(S, self.limit_gb)
        return of_rows(there, S, keep)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        return self.kept(TwoSided(cholesky_inverse(moments.A, self.damping)), io)


def refuse_large(S: Tensor, limit_gb: float) -> None:
    """Refuse blocks for each row of a gradient ``[dim_out, dim_in (+1)]`` that are more than that many 1e9 bytes.

    Raises:
        MemoryError: they are.
    """
    out, width = S.shape
    size = out * width**2 * S.element_size() / 1e9
    if size > limit_gb:
        raise MemoryError(
            f"blocks=rows takes {size:.3g} GB for the blocks of a layer of {out} rows of {width}, and as much for "
            f"their inverses, where limit_gb={limit_gb:g}: use blocks=shared, or raise limit_gb"
        )
