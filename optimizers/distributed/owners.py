"""Owner-wise inverses: each layer is one rank's, which inverts it for all.

Osawa, Tsuji, Ueno, Naruse, Yokota & Matsuoka 2019, "Large-scale distributed second-order optimization using
Kronecker-factored approximate curvature for deep convolutional neural networks", CVPR, arXiv 1811.12019.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import Tensor
from torch.utils._pytree import tree_leaves

from stepscale.models import CapturesSamples, LayerIO
from stepscale.optimizers.distributed.ranks import Ranks
from stepscale.optimizers.kronecker.base import Alone, Applied, Kind, Kronecker
from stepscale.optimizers.kronecker.foof import FOOF
from stepscale.optimizers.kronecker.moments import Moments

MEANS = (Kronecker.average, FOOF.average)  # of moments that are means over samples


class Owners(Alone):
    """The work of a ``Kronecker`` direction, shared by ranks of which each has captured its part of the rows.

    Moments that are means over samples, as K-FAC's, are averaged over the ranks by one all-reduce, and are the same in
    all. Squares of a batch's mean gradient, as TNT's, are no such means: the captured rows are gathered, by one
    all-gather, and a layer's owner takes them into its moments. The others' stay as the first step has left them, and
    are not read. What an owner makes of its layers' moments it broadcasts, at once for all of them. In the first step
    every rank makes all, and so knows what will be sent to it.

    Attributes:
        turn: number of the step at hand.
        rows: of the batch at hand, that each rank has.
        share: of this rank's in the batch's loss.
        owners: of each layer that is trained; none before the first step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.turn = 0
        self.rows: list[int] = []
        self.share = 1.0
        self.owners: tuple[int, ...] = ()

    def averaged(self, direction: Kronecker[Kind], source: list[LayerIO], keep: float) -> list[Moments]:
        if self.ranks.world == 1:
            return super().averaged(direction, source, keep)
        if type(direction).average in MEANS:
            found = super().averaged(direction, source, keep)
            self.ranks.total_([M for moments in found for M in (moments.A, moments.G) if M is not None], self.share)
            return found
        whole = self._whole(source, direction.relative)
        if not direction.moments:
            return super().averaged(direction, whole, keep)
        self._share_out(source)
        return [
            direction.average(moments, io, keep) if owner == self.ranks.rank else moments
            for moments, io, owner in zip(direction.moments, whole, self.owners, strict=True)
        ]

    def made(self, direction: Kronecker[Kind], free: list[LayerIO], source: list[LayerIO] | None) -> list[Kind]:
        self._share_out(free)
        if self.ranks.world == 1 or not direction.applied:
            return super().made(direction, free, source)
        with self.ranks.drawing("made", direction.steps):
            found = [
                direction.applied_to(io, moments, None) if owner == self.ranks.rank else applied
                for io, moments, applied, owner in zip(
                    free, direction.moments, direction.applied, self.owners, strict=True
                )
            ]
        for rank in sorted(set(self.owners)):
            of_rank = [applied for applied, owner in zip(found, self.owners, strict=True) if owner == rank]
            self.ranks.sent_(tensors_of(of_rank), rank)
        return found

    def _share_out(self, ios: list[LayerIO]) -> None:
        self.owners = balanced(tuple((io.layer.out_features, io.layer.in_features) for io in ios), self.ranks.world)

    def _whole(self, source: list[LayerIO], relative: bool) -> list[LayerIO]:
        """All ranks' rows of captured layers: what of them moments are made of."""
        seen = [io.y if relative and io.log_det else io.a for io in source]
        rows = self.ranks.gathered(
            [part for pair in zip(seen, (io.delta for io in source), strict=True) for part in pair], self.rows
        )
        return [
            io._replace(a=x, u=x, y=x, delta=delta) for io, x, delta in zip(source, rows[::2], rows[1::2], strict=True)
        ]


class OwnSamples:
    """Model samples that each rank draws from a generator of its own."""

    def __init__(self, sampler: CapturesSamples, owners: Owners) -> None:
        self.sampler, self.owners = sampler, owners

    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        with self.owners.ranks.drawing("samples", self.owners.turn):
            return self.sampler.capture_samples(ios)


def tensors_of(applied: Sequence[Applied]) -> list[Tensor]:
    """Return the tensors of what is applied, to be written into."""
    return [leaf for one in applied for leaf in tree_leaves(one.state_dict()) if isinstance(leaf, Tensor)]


@cache
def balanced(shapes: tuple[tuple[int, int], ...], world: int) -> tuple[int, ...]:
    """Return the owner of each layer: the dearest first, each to the rank that has least; an inverse costs d³."""
    loads, owners = [0] * world, [0] * len(shapes)
    costs = [out**3 + width**3 for out, width in shapes]
    for layer in sorted(range(len(shapes)), key=lambda layer: -costs[layer]):
        owners[layer] = loads.index(min(loads))
        loads[owners[layer]] += costs[layer]
    return tuple(owners)
