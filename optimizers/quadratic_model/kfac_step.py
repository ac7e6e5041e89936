"""What K-FAC's paper adds to its direction: step size, momentum and damping from the quadratic model; and KL clipping.

Martens & Grosse 2015, arXiv 1503.05671, sections 6.4 to 8 and 13: with M(δ) = ½ δᵀ(F + (λ + η) I)δ + ∇ᵀδ and F the
exact Fisher matrix of the batch, the update is the δ = α Δ + μ δ₀ that minimises M, Δ the K-FAC direction and δ₀ the
last update; and λ follows how well M foretells the loss. Ba, Grosse & Martens 2017, and Wu et al. 2017, arXiv
1708.05144, section 3.2: a step is shortened so that it changes the distribution by little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, FisherRoots, HasLoss, LayerIO, Tangents, first
from stepscale.optimizers.core.frames import add_whole, into_frame, map_back, whole
from stepscale.optimizers.core.step import LearnsAfterwards, Mark, Paced, StateDict, no_mark, require, require_served
from stepscale.optimizers.core.tangents import combined, copied, gradients, inner, move
from stepscale.optimizers.core.trained import trainable, trained
from stepscale.optimizers.kronecker.base import Kronecker, share_of
from stepscale.optimizers.kronecker.kfac import KFAC
from stepscale.optimizers.quadratic_model.polyak import IterateAverage
from stepscale.optimizers.quadratic_model.quadratic import QuadraticModel, quadratic_model

SHRINK = 19 / 20  # of λ, a step: ω₁ = SHRINK ** interval; of γ its root, ω₂ = SHRINK ** (gamma_interval / 2)
POOR, GOOD = 1 / 4, 3 / 4  # of the foretold change, by which λ grows or shrinks
LEAST = 1e-5  # λ, and γ²


class Curved(HasLoss, Captures, FisherRoots, Protocol):
    """A model whose loss and its quadratic model can be evaluated."""


class QuadraticStep:
    """K-FAC's own update; O(B P) a step beside the direction, and O(L d³) where there are log-determinants.

    What the paper has beside are options, off where they are not named: γ apart from λ, a penalty, a share of the rows,
    iterates averaged. The direction's ``schedule.eager`` makes inverses in every step at first (3 of the paper's), its
    ``statistics_share`` is τ₁.

    Args:
        model: offers ``loss``, ``capture`` and ``fisher_roots``.
        direction: builds the ``Kronecker`` direction Δ; its ``damping`` is λ₀.
        momentum: whether δ₀ takes part; without it only the step's length is chosen.
        interval: T₁, steps between adaptations of λ, each at the cost of two more losses; None to keep λ.
        gamma_interval: T₂, steps between searches of γ, whose square is the direction's damping: of γ, ω₂ γ and γ / ω₂
            that with the lowest M, each at the cost of an inversion. None keeps γ² = λ + η.
        l2: η of η/2 ‖θ‖² in the loss: it is in the gradient, at two dense products a layer and step, four on a flow
            in the relative frame; in M and in γ₀.
        fisher_share: τ₂, of a batch's samples, the first, by which F is applied in M.
        averaging: ξ of the average of iterates that a training is judged at (``IterateAverage``); None for none.

    Attributes:
        damping: λ now; γ² is the direction's.
        coefficients: α and μ of the last step.

    Raises:
        ValueError: a number is out of its range.
        TypeError: the model lacks a method, or the direction is no ``Kronecker`` one, or is to be told of steps; or it
            is another than K-FAC's, which searches of γ and a penalty need.
        FloatingPointError: when called, and the parameters have diverged.
        RuntimeError: when called, or asked for its state, and the model holds the average.
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Callable[[nn.Module], Kronecker[Any]],
        *,
        momentum: bool = True,
        interval: int | None = 5,
        gamma_interval: int | None = None,
        l2: float = 0.0,
        fisher_share: float = 1.0,
        averaging: float | None = None,
    ) -> None:
        self.model = require(model, Curved, "quadratic model's step")
        if interval is not None and interval < 1:
            raise ValueError(f"interval must be at least 1 step, or null, got {interval}")
        if l2 < 0:
            raise ValueError(f"l2 must be at least 0, got {l2}")
        self.parameters = trainable(model)
        self.direction, self.momentum, self.interval = kronecker_of(model, direction), momentum, interval
        _refuse_what_is_told(self.direction)
        if gamma_interval is not None or l2:
            _require_kfac(self.direction)
        every = self.direction.schedule.inverse
        if gamma_interval is not None and (gamma_interval < 1 or gamma_interval % every):
            raise ValueError(f"gamma_interval must be a multiple of schedule.inverse={every}, got {gamma_interval}")
        self.gamma_interval, self.l2 = gamma_interval, l2
        self.fisher_share = share_of("fisher_share", fisher_share)
        period = math.lcm(self.direction.facts.period, interval or 1, gamma_interval or 1)
        self.facts = replace(self.direction.facts, period=period)
        self.damping = self.direction.damping
        self.direction.damping += l2
        self.average = None if averaging is None else IterateAverage([*self.parameters], averaging)
        self.steps = 0
        self.last: Tangents = []  # δ₀
        self.coefficients = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        if self.average is not None:
            self.average.require_hidden()
        ios = self.model.capture(batch)
        trained(ios)  # refuses tied layers, over which the sums below would go twice
        self.direction.apply(ios, mark)
        self._penalise(ios)
        if self.steps == 0:
            require_served(type(self.direction).__name__, (p for p in self.parameters if p.grad is None))
        layers = [io.layer for io in ios]
        update, foretold = self._update(ios, layers)
        adapting = self.interval is not None and (self.steps + 1) % self.interval == 0
        before = self._loss(batch) if adapting else foretold
        move(layers, update)
        self.last = update if self.momentum else []
        if adapting:
            self._adapt((self._loss(batch) - before).item(), foretold.item())
        if self.average is not None:
            self.average.take()
        self.steps += 1
        mark("update")

    def train(self) -> None:
        """Bring the model to the iterate that is trained."""
        if self.average is not None:
            self.average.hide()

    def eval(self) -> None:
        """Bring the model to the iterates' average, where there is one."""
        if self.average is not None and self.average.count:
            self.average.show()

    def state_dict(self) -> StateDict:
        state = {
            "direction": self.direction.state_dict(),
            "damping": self.damping,
            "split": self.direction.damping,
            "steps": self.steps,
            "last": [list(part) for part in self.last],
        }
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.direction.load_state_dict(state["direction"])
        self.damping, self.direction.damping, self.steps = state["damping"], state["split"], state["steps"]
        self.last = [(dW, db) for dW, db in state["last"]]
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _update(self, ios: list[LayerIO], layers: list[nn.Linear]) -> tuple[Tangents, Tensor]:
        """O(B P), and two inversions where γ is searched: δ, and by how much M foretells that it changes the loss."""
        past = [self.last] if self.last else []
        if self.gamma_interval is None or self.steps == 0 or self.steps % self.gamma_interval:
            directions = [gradients(layers), *past]
            weights, foretold = self._quadratic_model(ios, layers, directions).minimum()
        else:
            trials = self._trials(ios, layers)
            model = self._quadratic_model(ios, layers, [trial.direction for trial in trials] + past)
            last = [*range(len(trials), len(trials) + len(past))]
            minima = [model.of([k, *last]).minimum() for k in range(len(trials))]
            best = min(range(len(trials)), key=lambda k: minima[k][1].item())
            (weights, foretold), directions = minima[best], [trials[best].direction, *past]
            self._take_up(trials[best], layers)
        self.coefficients = torch.nn.functional.pad(weights, (0, 2 - len(weights)))
        return combined(weights, directions), foretold

    def _trials(self, ios: list[LayerIO], layers: list[nn.Linear]) -> list[Trial]:
        """O(L d³): the direction of today's γ, of ω₂ γ and of γ / ω₂."""
        split, factor = self.direction.damping, SHRINK ** (self.gamma_interval or 1)
        found: list[Trial] = []
        for damping in (split, split * factor, split / factor):
            if found:
                self.direction.again(ios, max(LEAST, damping))
                self._penalise(ios)
            found.append(Trial(copied(gradients(layers)), self.direction.damping, self.direction.applied))
        return found

    def _take_up(self, trial: Trial, layers: list[nn.Linear]) -> None:
        self.direction.damping, self.direction.applied = trial.damping, trial.applied
        for own, kept in zip(gradients(layers), trial.direction, strict=True):
            for gradient, value in zip(own, kept, strict=True):
                if gradient is not None and value is not None:
                    gradient.copy_(value)

    def _penalise(self, ios: list[LayerIO]) -> None:
        """O(L d³): add the penalty's part, G⁻¹ η θ A⁻¹, to the direction in ``.grad``."""
        if not self.l2:
            return
        for io, applied in zip(trained(ios), self.direction.applied, strict=True):
            layer, mapped = io.layer, self.direction.relative and io.log_det
            theta = whole(layer.weight, layer.bias)
            D = applied.whole(into_frame(theta, layer) if mapped else theta)
            add_whole(layer, map_back(D, layer) if mapped else D, self.l2)

    def _quadratic_model(
        self, ios: list[LayerIO], layers: list[nn.Linear], directions: list[Tangents]
    ) -> QuadraticModel:
        few = ios if self.fisher_share == 1 else [first(io, self.fisher_share) for io in ios]
        model = quadratic_model(ios, directions, self.model.fisher_roots(few, directions), self.damping + self.l2)
        if not self.l2:
            return model
        theta: Tangents = [(layer.weight, layer.bias) for layer in layers]
        penalty = torch.stack([inner(theta, direction) for direction in directions])
        return model._replace(slope=model.slope + self.l2 * penalty)

    def _loss(self, batch: Batch) -> Tensor:
        loss = self.model.loss(batch)
        if not self.l2:
            return loss
        return loss + self.l2 / 2 * torch.stack([p.square().sum() for p in self.parameters]).sum()

    def _adapt(self, change: float, foretold: float) -> None:
        """λ by the Levenberg–Marquardt rule, from the share of the foretold change that came."""
        if not math.isfinite(change):
            raise FloatingPointError(f"the loss is not finite after a step at damping={self.damping:g}: raise damping")
        factor = SHRINK ** (self.interval or 1)
        if foretold < 0 and change / foretold > GOOD:
            self.damping = max(LEAST, self.damping * factor)
        elif foretold < 0 and change / foretold < POOR:
            self.damping /= factor
        if self.gamma_interval is None:
            self.direction.damping = self.damping + self.l2


class Trial(NamedTuple):
    """What one γ leads to."""

    direction: Tangents
    damping: float  # γ²
    applied: list[Any]


def kronecker_of(model: nn.Module, direction: Callable[[nn.Module], Kronecker[Any]]) -> Kronecker[Any]:
    """Build a direction whose layers' captured batch can be used twice.

    Raises:
        TypeError: it is of another kind.
    """
    built = direction(model)
    if not isinstance(built, Kronecker):
        raise TypeError(f"the direction must be one of curvature in factors, as KFAC, got {type(built).__name__}")
    return built


def _refuse_what_is_told(direction: Kronecker[Any]) -> None:
    """Refuse a direction that is to be told of steps, of which a quadratic model's step tells nothing."""
    if isinstance(direction, LearnsAfterwards):
        raise TypeError(
            f"{type(direction).__name__} learns after each step, of which a quadratic model's step tells "
            "nothing: give it to pair or to a trust region"
        )
    if isinstance(direction, Paced):
        raise TypeError(
            f"{type(direction).__name__} goes by learning rates, of which a quadratic model's step has none: "
            "give it to pair"
        )


def _require_kfac(direction: Kronecker[Any]) -> None:
    """See that a direction may be made twice in a step, and splits its damping over two factors."""
    if type(direction) is not KFAC or direction.momentum:
        raise TypeError(
            "gamma_interval and l2 are of K-FAC without a momentum of its own, got "
            f"{type(direction).__name__}: set gamma_interval=null and l2=0"
        )
