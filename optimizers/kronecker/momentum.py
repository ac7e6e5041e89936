"""Momentum before the preconditioner, as it is published, at O(B d²) a step between inversions.

The preconditioner P is constant between inversions. So both the gradients' running sum m and v = P m are kept:

    m ← μ m + S,    v ← μ v + P S,

with S = gᵀx̄/B − [N, 0] the mean gradient, whose first part has at most as high a rank as there are rows, and
v ← P m anew after an inversion. Momentum behind the preconditioner, as in the update, is something else: a sum of
directions of which the older were made with older inverses, and fails in the first steps of TNT.

The dense form is what released code computes: squares of S by whole products, and v = P m anew in every step, up to
8 d³ a layer. It writes the same, and is there to be compared with: for what it costs, and as the other's oracle.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from typing import Unpack

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, LogDet, one_of
from stepscale.optimizers.core.frames import aligned, inputs, log_det_gradient, map_back, write_whole
from stepscale.optimizers.core.low_rank import after, columns
from stepscale.optimizers.core.step import StateDict
from stepscale.optimizers.kronecker.base import Kronecker, Options
from stepscale.optimizers.kronecker.two_sided import TwoSided, full_is_cheaper


class Form(StrEnum):
    """How what is published is computed: by the gradient's factors of rank B, or by dense products."""

    FACTORED = "factored"
    DENSE = "dense"


class MeanGradientOptions(Options, total=False):
    """What every method of mean gradients takes, and treats alike; ``TNT`` says what they are."""

    log_det: str
    form: str


@dataclass
class Velocity:
    """Momentum of one layer in its frame, ``[dim_out, dim_in (+1)]`` each."""

    m: Tensor  # of gradients
    v: Tensor  # of what is applied to them

    @classmethod
    def at_rest(cls, io: LayerIO, relative: bool) -> Velocity:
        """O(d²)."""
        zeros = io.delta.new_zeros(io.delta.shape[1], inputs(io, relative).shape[1])
        return cls(aligned(zeros), aligned(zeros))

    def move(self, io: LayerIO, applied: TwoSided, relative: bool, momentum: float, anew: bool) -> None:
        """O(B d²), O(d³) to make v ``anew``, as after an inversion: take in a captured layer's gradient, in place.

        With a log-determinant the Euclidean frame's N costs O(d³) in every step.
        """
        x, delta, B, d = inputs(io, relative), io.delta, io.samples, io.layer.in_features
        self.m.addmm_(delta.T, x, beta=momentum, alpha=1 / B)
        if io.log_det and relative:
            self.m.diagonal().sub_(1)
        elif io.log_det:
            self.m[:, :d].sub_(log_det_gradient(io.layer))
        out, width = io.layer.weight.shape
        dense = full_is_cheaper(len(x), out, width, columns(applied.left), columns(applied.right))
        if anew or (dense and not io.log_det):
            self.v.copy_(applied.whole(self.m))
            return
        left = delta if applied.left is None else after(delta, applied.left)
        self.v.addmm_(left.T, after(x, applied.right), beta=momentum, alpha=1 / B)
        if io.log_det:
            self.v.sub_(applied.log_det_part_in_frame(io.layer, relative))


class WithMomentum(Kronecker[TwoSided]):
    """A direction of two matrices a layer that may own its momentum; the update then has none.

    Attributes:
        momentum: μ.
        dense: whether all that is O(B d²) between inversions is computed by whole products instead.
        velocities: of each layer that is trained; none where μ = 0, but in the dense form.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        momentum: float,
        damping: float,
        statistics: str,
        log_det: str = LogDet.EXACT,
        form: str = Form.FACTORED,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, damping=damping, statistics=statistics, log_det=log_det, **options)
        self.dense = one_of("form", Form, form) is Form.DENSE
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if momentum and self.stale:
            raise ValueError(
                "momentum is mapped back through the weights in every step, at d³: log_det=stale would save nothing; "
                "set log_det=exact, or momentum=0 and the update's own"
            )
        if self.dense and self.stale:
            raise ValueError(
                "form=dense multiplies whole gradients in every step, at d³: log_det=stale would save nothing; "
                "set log_det=exact, or form=factored"
            )
        self.momentum = momentum
        self.velocities: list[Velocity] = []

    def kept(self, made: TwoSided, io: LayerIO) -> TwoSided:
        """O(d³) at most: add what later steps need of a log-determinant's part; the dense form needs nothing."""
        return made if self.dense else made.keeping_log_det(io, self.relative, self.stale)

    def write(self, free: list[LayerIO], renewed: bool) -> None:
        if not self.momentum and not self.dense:
            return super().write(free, renewed)
        if not self.velocities:
            self.velocities = [Velocity.at_rest(io, self.relative) for io in free]
        for io, applied, velocity in zip(free, self.applied, self.velocities, strict=True):
            velocity.move(io, applied, self.relative, self.momentum, renewed or self.dense)
            write_in_frame(io, velocity.v, self.relative)

    @torch.no_grad()
    def shrink(self, by: Tensor) -> None:
        """O(P): make all momentum shorter, as the step that it has led to is."""
        for velocity in self.velocities:
            velocity.m.mul_(by)
            velocity.v.mul_(by)

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "velocities": [dict(vars(velocity)) for velocity in self.velocities]}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict({name: part for name, part in state.items() if name != "velocities"})
        own = {id(tensor) for velocity in self.velocities for tensor in vars(velocity).values()}
        self.velocities = [
            Velocity(**{name: part if id(part) in own else deepcopy(part) for name, part in saved.items()})
            for saved in state["velocities"]
        ]

    def restored(self, saved: StateDict) -> TwoSided:
        return TwoSided.restored(saved)


def write_in_frame(io: LayerIO, v: Tensor, relative: bool) -> None:
    """O(d²), O(d³) where it is to be mapped back: a direction in the frame into ``.grad``."""
    write_whole(io.layer, map_back(v, io.layer) if relative and io.log_det else v)
