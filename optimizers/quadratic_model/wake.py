"""KLD-WRM: a step that keeps near all earlier iterates, by KL divergences that fade, and not near the last one alone.

Puiu 2022, "Rethinking exponential averaging of the Fisher", ECML PKDD, arXiv 2204.04718. With learning rates η_k the
step s_k minimises

    M_k(s) + 1/η_k Σ_{i ≤ k} w_i KL(p(θ_i) ‖ p(θ_k + s)),    w_i = (1 − ρ) ρ^(k − i), w_0 = ρ^k,

each divergence to second order, ½ (θ_k + s − θ_i)ᵀ F_i (θ_k + s − θ_i). The weights are those of K-FAC's running
average F̄ of Fisher matrices, and what the earlier divergences add to the gradient is known from the last step, which
was at their minimum:

    SO, M = gᵀs:              s_k = −η_k F̄_k⁻¹ ĝ_k,                ĝ_k = g_k − ρ (η_{k−1} / η_k) g_{k−1};
    Q,  M = gᵀs + ½ sᵀF_k s:  s_k = −η_k (F̄_k + η_k F_k)⁻¹ ĝ_k,    ĝ_k = g_k − ρ (η_{k−1} / η_k) (g + F s)_{k−1}.

The last gradient is kept as factors of rank B, and so is F s, so that between inversions no product is cubic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Unpack

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, one_of
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.step import StateDict
from stepscale.optimizers.kronecker.base import Options
from stepscale.optimizers.kronecker.kfac import KFAC
from stepscale.optimizers.kronecker.moments import Moments
from stepscale.optimizers.kronecker.two_sided import TwoSided

SCHEDULE = Schedule(statistics=1, inverse=10, decay=0.33)  # ρ is the authors' of SO


class Order(StrEnum):
    """Of M: the smallest, a linear one, or a quadratic."""

    SMALLEST = "so"
    QUADRATIC = "q"


@dataclass
class Factors:
    """A gradient of one layer in its frame, deltaᵀ x̄."""

    x: Tensor  # [rows, dim_in], x̄ without the one of a bias
    delta: Tensor  # [rows, dim_out], over the number of samples

    @classmethod
    def of(cls, io: LayerIO, relative: bool) -> Factors:
        """O(B d): of a captured layer's mean gradient, without its log-determinant's part."""
        return cls(io.y if relative and io.log_det else io.a, io.delta / io.samples)

    def plus(self, other: Factors) -> Factors:
        """O(B d): their sum, by as many rows as both have, where the inputs are not the same ones."""
        if self.x is other.x:
            return Factors(self.x, self.delta + other.delta)
        return Factors(torch.cat([self.x, other.x]), torch.cat([self.delta, other.delta]))

    def times(self, weight: float) -> Factors:
        return Factors(self.x, self.delta * weight)

    def in_place_of(self, io: LayerIO, relative: bool) -> LayerIO:
        """O(B d): a captured layer that has this mean gradient."""
        io = io._replace(delta=self.delta * len(self.delta), copies=1)
        return io._replace(y=self.x) if relative and io.log_det else io._replace(a=self.x)


class KLDWRM(KFAC):
    """K-FAC less a share ρ of its last gradient: O(L B d²) beside ``KFAC``, whose rows are doubled, and 2 L B d memory.

    Where F̄ and η are constant the sum of all steps is −η F̄⁻¹ [(1 − ρ) Σ g_i + ρ g_k]: it is K-FAC at the learning rate
    η (1 − ρ) whose iterate stands ρ η further along the last gradient. With ``order="q"`` the gradients are those that
    the quadratic model foretells at a step's end. So K-FAC at η (1 − ρ) and of the same ρ is what to compare it with.

    The update is to be plain descent, ``SGD`` without momentum; ``pair`` tells its learning rate before each step, so
    that a schedule of rates is honoured. In the relative frame steps add up as they do in the parameters of an
    infinitesimal change of a layer, and the last gradient stays in the frame of its own step.

    Cost is that of ``order="so"``. With ``order="q"`` and ``statistics="model"`` a flow's F s has rows of its own: rows
    are tripled, and memory is 4 L B d.

    Args:
        model: as ``KFAC``.
        order: ``"so"``, M of the smallest order, or ``"q"``, quadratic: F̄ + η F is then one Kronecker product, of the
            weighted means of the factors, as F̄ itself is; the authors multiply sums of factors, 1 + η times as much.
        damping: λ, added to what is inverted, as of ``KFAC``; F s is without it.
        frame: ``"relative"``; ``"euclidean"`` for models without log-determinants alone.
        schedule: its ``decay`` is ρ, of the averages and of the last gradient, after a plain mean at first. With
            ``order="q"`` statistics are of every step.
        statistics, log_det, shared, rest, statistics_share: as ``KFAC``.

    Attributes:
        rate: η of the next step; 1 where nobody tells it.

    Raises:
        ValueError, TypeError, FloatingPointError, torch.linalg.LinAlgError: as ``KFAC``; or statistics are too rare, or
            the frame does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        order: str = Order.SMALLEST,
        damping: float = 0.1,
        statistics: str = "model",
        log_det: str = "exact",
        **options: Unpack[Options],
    ) -> None:
        options.setdefault("schedule", SCHEDULE)
        super().__init__(model, damping=damping, statistics=statistics, log_det=log_det, **options)
        if self.momentum or self.dense:
            raise ValueError(
                "KLDWRM has the last gradient in place of momentum, and no dense form, got "
                f"momentum={self.momentum} and form={'dense' if self.dense else 'factored'}: leave both out"
            )
        self.quadratic = one_of("order", Order, order) is Order.QUADRATIC
        if self.quadratic and self.schedule.statistics > 1:
            raise ValueError(
                "order=q needs the Fisher matrix of every batch, got "
                f"schedule.statistics={self.schedule.statistics}: set it to 1"
            )
        self.rate, self.last_rate = 1.0, 1.0
        self.last: list[Factors] = []  # g_{k−1}, and with it F_{k−1} s_{k−1}, of each layer that is trained
        self.source: Sequence[LayerIO] = ()  # what this step's statistics are of

    def set_learning_rate(self, rate: float) -> None:
        self.rate = rate

    def observe(self, source: list[LayerIO]) -> None:
        super().observe(source)
        self.source = source

    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> TwoSided:
        if self.quadratic and fresh is not None:
            (A, G), (A_now, G_now) = moments.both, self.average(None, fresh, 0.0).both
            moments = Moments(A + self.rate * A_now, (G + self.rate * G_now) / (1 + self.rate))
        return super().applied_to(io, moments, fresh)

    def write(self, free: list[LayerIO], renewed: bool) -> None:
        self._refuse(free)
        rho = min(1 - 1 / self.updates, self.schedule.decay)  # as the averages have it; 0 until their second batch
        share = rho * self.last_rate / self.rate if self.rate else 0.0  # at a rate of 0 nothing moves
        now = [Factors.of(io, self.relative) for io in free]
        whole = free
        if share:
            sums = [own.plus(last.times(-share)) for own, last in zip(now, self.last, strict=True)]
            whole = [total.in_place_of(io, self.relative) for total, io in zip(sums, free, strict=True)]
        for io, applied in zip(whole, self.applied, strict=True):
            applied.write(io, self.relative, self.damping, log_dets=1 - share)
        if self.quadratic:
            now = [own.plus(self._foretold(*layer)) for own, *layer in zip(now, free, self.source, strict=True)]
        self.last = [Factors(own.x.clone(), own.delta) for own in now]  # a batch's own rows may be written over
        self.last_rate, self.source = self.rate, ()

    def state_dict(self) -> StateDict:
        last = [dict(vars(factors)) for factors in self.last]
        return {**super().state_dict(), "last_rate": self.last_rate, "last": last}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict({name: part for name, part in state.items() if name not in ("last_rate", "last")})
        self.last_rate, self.last = state["last_rate"], [Factors(**saved) for saved in state["last"]]

    def _foretold(self, io: LayerIO, drawn: LayerIO) -> Factors:
        """O(B d² + B² d): F s of the step −η D, with D in ``.grad`` and F the batch's Kronecker product, as factors.

        G D A = gᵀg D x̄ᵀx̄ / n has the rows of x̄, and D x̄ is D ā of the parameters in either frame.
        """
        W, b = io.layer.weight.grad, io.layer.bias
        assert W is not None  # it has just been written
        rates = drawn.a @ W.T if b is None or b.grad is None else torch.addmm(b.grad, drawn.a, W.T)
        g = drawn.delta
        curved = torch.linalg.multi_dot([rates, g.T, g / drawn.samples])
        return Factors(Factors.of(drawn, self.relative).x, curved * (-self.rate / len(rates)))

    def _refuse(self, free: list[LayerIO]) -> None:
        if not self.relative and any(io.log_det for io in free):
            raise ValueError(
                "frame=euclidean would keep W⁻ᵀ of the last step, [dim, dim], for layers with a log-determinant in the "
                "loss: set frame=relative"
            )
