"""K-BFGS: a layer's inverse curvature as a Kronecker product of two matrices that learn by BFGS.

Goldfarb, Ren & Bahamou 2020, "Practical quasi-Newton methods for training deep neural networks", NeurIPS, arXiv
2006.08877. The Hessian matrix of a layer is taken as H ⊗ A, A = E[x̄ x̄ᵀ] of its inputs and H the Hessian matrix of the
loss by its outputs. H_a ≈ (A + √λ I)⁻¹ learns from A itself, H_g ≈ H⁻¹ from how the mean output and its mean gradient
have changed over a step, for which the same batch is captured again after it.

The direction is v = H_g m H_a with m momentum of gradients. As published it is two products of d³ a layer and step.
Here m and v are both kept (``kronecker.momentum``): a gradient enters v by its factors, and a change U C Uᵀ of rank 2,
of H_g or H_a, by v ← v + U C (Uᵀ m) H_a or v ← v + H_g (m U) C Uᵀ, at O(d²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepscale.models import Batch, LayerIO, Rest
from stepscale.optimizers.core.frames import Frame, inputs
from stepscale.optimizers.core.low_rank import after, before
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.solve import cholesky_inverse
from stepscale.optimizers.core.statistics import Sharing, Statistics
from stepscale.optimizers.core.step import Mark, StateDict, no_mark
from stepscale.optimizers.core.trained import trained
from stepscale.optimizers.kronecker.moments import Moments, of_inputs
from stepscale.optimizers.kronecker.momentum import Velocity, WithMomentum, write_in_frame
from stepscale.optimizers.kronecker.two_sided import TwoSided
from stepscale.optimizers.quasi_newton.bfgs import Change, bfgs, doubly_damped
from stepscale.optimizers.quasi_newton.limited_memory import LimitedMemory


class Means(NamedTuple):
    """Of what one layer saw of a batch."""

    x: Tensor  # of its inputs in the frame, x̄, [dim_in (+1)]
    y: Tensor  # of its outputs, [dim_out]
    delta: Tensor  # of each sample's gradient at them, summed over the sample's rows, [dim_out]

    @classmethod
    def of(cls, io: LayerIO, relative: bool) -> Means:
        """O(B d)."""
        return cls(inputs(io, relative).mean(0), io.y.mean(0), io.delta.sum(0) / io.samples)


@dataclass
class Outputs:
    """What H_g of one layer learns from, running averages both; and H_g itself where it is not a matrix."""

    s: Tensor  # of how the mean output has moved, [dim_out]
    y: Tensor  # of how its gradient has changed, [dim_out]
    limited: LimitedMemory | None


class KBFGS(WithMomentum):
    """H_g m H_a: O(L B d²), two captures, inversions at first alone; with log-determinants one d³ product a layer more.

    The first step inverts a matrix a layer, of min(B, d) rows, and no later one does. m is momentum, before both
    matrices. With ``pairs`` = k, K-BFGS(L), H_g is made of the last k pairs and not formed: O(L (B + k) d²). The step
    that the update takes may be any: H_g learns of where the parameters are then. Dropout and batch normalisation make
    the second capture noisy. Curvature of log-determinants is left out. In the relative frame v is mapped back through
    the weights by the one product of d³; in the Euclidean one W⁻ᵀ and its products are O(d³) besides. Memory O(L d²).

    The authors average gradients, and this sums them, as torch's SGD does: their learning rate times 1 − μ is one here.
    They begin with A of an epoch; this with A of the first batch, whose inverse is of the rank of its rows.

    Args:
        model: offers ``capture``, or ``loss``, and is captured by hooks (``stepscale.models.Hooked``).
        damping: λ, below 1; √λ is added to A, and is the least s·y of a pair, as a share of s·s.
        momentum: μ, of gradients.
        decay: of the averages of A (a plain mean at first) and of pairs.
        pairs: k, that H_g is made of; None for a matrix that has learned from all.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        shared, rest: as ``KFAC``.

    Raises:
        ValueError: an option or a number is out of its range.
        TypeError: the model lacks a method, or its layers a log-determinant that the relative frame needs.
        FloatingPointError: when first called, and the model's inputs are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.3,
        momentum: float = 0.9,
        decay: float = 0.9,
        pairs: int | None = None,
        frame: str = Frame.RELATIVE,
        shared: str = Sharing.EXPAND,
        rest: str = Rest.REFUSE,
    ) -> None:
        super().__init__(
            model,
            momentum=momentum,
            damping=damping,
            statistics=Statistics.DATA,
            schedule=Schedule(statistics=1, inverse=1, decay=decay),
            frame=frame,
            shared=shared,
            rest=rest,
        )
        if not 0 < damping < 1:
            raise ValueError(
                f"damping must lie between 0 and 1, got damping={damping}: H_g starts as I, and its double damping "
                "needs a least curvature √damping below I's"
            )
        if pairs is not None and pairs < 1:
            raise ValueError(f"pairs must be at least 1, or null for a matrix, got pairs={pairs}")
        self.pairs = pairs
        self.outputs: list[Outputs] = []
        self.seen: list[Means] = []  # where the step set out that is being taken

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        return of_inputs(there, io, self.relative, keep)

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        right = inverse_of_few(inputs(fresh or io, self.relative), moments.A, math.sqrt(self.damping))
        if self.pairs is not None:
            return TwoSided(right)  # what ``Velocity`` keeps is m H_a then
        left = torch.eye(io.delta.shape[1], dtype=right.dtype, device=right.device)
        kept = self.relative and io.log_det
        return TwoSided(right, left, within=right[: io.layer.in_features].clone() if kept else None)

    def write(self, free: list[LayerIO], renewed: bool) -> None:
        self.seen = self.seen or [Means.of(io, self.relative) for io in free]  # a closure may evaluate elsewhere, too
        if not self.velocities:
            self.velocities = [Velocity.at_rest(io, self.relative) for io in free]
            self.outputs = [self._outputs(io) for io in free]
        for io, applied, velocity, outputs in zip(free, self.applied, self.velocities, self.outputs, strict=True):
            velocity.move(io, applied, self.relative, self.momentum, anew=False)
            v = velocity.v if outputs.limited is None else outputs.limited.times(velocity.v)
            write_in_frame(io, v, self.relative)

    @torch.no_grad()
    def after_step(self, batch: Batch, mark: Mark = no_mark) -> None:
        """O(L B d²): learn from where the step of this batch has led to."""
        free = trained(self.model.capture(batch), shared=True)
        mark("gradient")
        for place, (io, seen) in enumerate(zip(free, self.seen, strict=True)):
            now = Means.of(io, self.relative)
            self._learn_outputs(place, now.y - seen.y, now.delta - seen.delta)
            self._learn_inputs(place, seen.x)
        self.seen = []
        mark("inverse")

    def state_dict(self) -> StateDict:
        outputs = [
            {"s": part.s, "y": part.y, "limited": None if part.limited is None else dict(vars(part.limited))}
            for part in self.outputs
        ]
        return {**super().state_dict(), "outputs": outputs}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict({name: part for name, part in state.items() if name != "outputs"})
        self.outputs = [
            Outputs(saved["s"], saved["y"], None if saved["limited"] is None else LimitedMemory(**saved["limited"]))
            for saved in state["outputs"]
        ]
        self.seen = []

    def _invert(self, free: list[LayerIO], source: list[LayerIO] | None) -> None:
        """At first alone; from then on both matrices learn."""
        if not self.applied:
            super()._invert(free, source)

    def _outputs(self, io: LayerIO) -> Outputs:
        none = io.delta.new_zeros(io.delta.shape[1])
        return Outputs(none, none.clone(), None if self.pairs is None else LimitedMemory.empty(self.pairs, none))

    def _learn_outputs(self, place: int, moved: Tensor, turned: Tensor) -> None:
        """O(d²), O(k d²) of limited memory: H_g by a pair of averages, doubly damped."""
        outputs, applied, velocity = self.outputs[place], self.applied[place], self.velocities[place]
        outputs.s = torch.lerp(moved, outputs.s, self.schedule.decay)
        outputs.y = torch.lerp(turned, outputs.y, self.schedule.decay)
        least = math.sqrt(self.damping)
        if outputs.limited is not None:
            outputs.limited = outputs.limited.taking(*doubly_damped(outputs.s, outputs.y, outputs.limited.times, least))
            return
        H = applied.left
        assert isinstance(H, Tensor)
        s, y = doubly_damped(outputs.s, outputs.y, H.mv, least)
        change = bfgs(s, y, H @ y)
        velocity.v.addmm_(change.U @ change.C, after(change.U.T @ velocity.m, applied.right))
        if applied.within is not None:  # the same of [I, 0]
            applied.within.addmm_(change.U @ change.C, after(change.U.T, applied.right))
        take(H, change)

    def _learn_inputs(self, place: int, mean: Tensor) -> None:
        """O(d²): H_a by the pair that A itself makes of the batch's mean input."""
        applied, velocity, A = self.applied[place], self.velocities[place], self.moments[place].A
        H = applied.right
        assert isinstance(H, Tensor)
        s = H @ mean
        y = torch.addmv(s, A, s, beta=math.sqrt(self.damping))
        change = bfgs(s, y, H @ y)
        turned = change.C @ change.U.T

        def through(X: Tensor) -> Tensor:
            return X if applied.left is None else before(applied.left, X)

        velocity.v.addmm_(through(velocity.m @ change.U), turned)
        if applied.within is not None:
            applied.within.addmm_(through(change.U[: len(applied.within)]), turned)
        take(H, change)


def take(H: Tensor, change: Change) -> None:
    """O(d²): H ← H + U C Uᵀ, in place."""
    H.addmm_(change.U @ change.C, change.U.T)


def inverse_of_few(x: Tensor, A: Tensor, shift: float) -> Tensor:
    """O(n d² + n³) of n rows fewer than they are wide, else O(d³): (A + shift · I)⁻¹ where A = xᵀx/n.

    Raises:
        FloatingPointError: A is not finite.
    """
    n, width = x.shape
    if n >= width:
        return cholesky_inverse(A, shift)
    inverse = x.T @ (cholesky_inverse(x @ x.T / n, shift) @ x)
    inverse.mul_(-1 / (n * shift)).diagonal().add_(1 / shift)
    return inverse
