"""Hessian-free optimisation: the damped Gauss-Newton step by conjugate gradients.

Martens 2010, "Deep learning via Hessian-free optimization", ICML; Martens & Sutskever 2012, "Training deep and
recurrent networks with Hessian-free optimization".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, CapturesSamples, FisherTimes, HasLoss, LayerIO
from stepscale.optimizers.core.step import Mark, StateDict, no_mark, require, require_served
from stepscale.optimizers.core.tangents import flat, gradients, mean_gradients, move, squares, unflat
from stepscale.optimizers.core.trained import trainable, trained
from stepscale.optimizers.exact.autodiff import Layerwise
from stepscale.optimizers.hessian.conjugate_gradients import Iterate, conjugate_gradients

POWER = 0.75  # of the preconditioner
POOR, GOOD = 1 / 4, 3 / 4  # of the foretold change, by which λ grows or shrinks
CHANGE = 3 / 2  # of λ
SLOPE, SHORTER, TRIES = 1e-2, 0.8, 60  # of the line search


class Solvable(HasLoss, Captures, CapturesSamples, FisherTimes, Protocol):
    """A model whose loss can be evaluated, and whose Fisher matrix can be multiplied by."""


class HessianFree:
    """The damped Gauss-Newton step by conjugate gradients; O(n B P), n the inner iterations, and O(L d³) on a flow.

    Each step minimises M(δ) = ½ δᵀ(F + λ I)δ + ∇ᵀδ, F the Fisher matrix of the batch, from the last solution times
    ``warm``. It takes that of the kept iterates at which the loss ends falling, looking back from the last, shortens
    it until the loss falls enough, and changes λ by how well M foretold the loss. A flow's F is of as many rows drawn
    from it, the same in all products of a step.

    Args:
        model: offers ``loss``, ``capture``, ``capture_samples`` and ``fisher_times``.
        damping: λ₀.
        floor: the least λ. Without one λ falls until a step fits its batch alone, and the loss of other rows rises.
        iterations: of conjugate gradients, at most.
        tolerance: ε of their progress at which they end; 0 for none.
        warm: share of the last solution at which they start.

    Attributes:
        damping: λ now.
        inner_iterations: n of all steps so far.
        rate: what the line search left of the last step; 0 where no length lowered the loss.

    Raises:
        ValueError: a number is out of its range.
        TypeError: the model lacks a method.
        FloatingPointError: when called, and the loss is not finite before the step.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1.0,
        floor: float = 0.1,
        iterations: int = 60,
        tolerance: float = 5e-4,
        warm: float = 0.95,
    ) -> None:
        self.model = require(model, Solvable, "Hessian-free")
        if not damping >= floor > 0:
            raise ValueError(f"damping must be at least floor, and floor positive, got {damping} and {floor}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if tolerance < 0 or not 0 <= warm <= 1:
            raise ValueError(f"tolerance must be at least 0 and warm in 0 … 1, got {tolerance} and {warm}")
        self.module, self.parameters = model, trainable(model)
        self.gradient = Layerwise(model)
        self.facts = replace(self.gradient.facts, exact=False)
        self.damping, self.floor = damping, floor
        self.iterations, self.tolerance, self.warm = iterations, tolerance, warm
        self.last: Tensor | None = None
        self.inner_iterations, self.rate = 0, 1.0

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None
        self.parameters = trainable(self.module)
        self.gradient(batch, mark)
        with torch.no_grad():
            ios = self.model.capture(batch)
            trained(ios)  # refuses tied layers and several rows a sample
            layers = [io.layer for io in ios]
            require_served(type(self).__name__, self._left_out(layers))
            b = -flat(gradients(layers))
            kept = self.solve(ios, b)
            mark("precondition")
            self._step(batch, layers, kept, b)
            mark("update")

    def solve(self, ios: list[LayerIO], b: Tensor) -> list[Iterate]:
        """O(n B P): kept iterates towards (F + λ I)⁻¹ b, the last the nearest."""
        layers, drawn = [io.layer for io in ios], self.model.capture_samples(ios)

        def times(v: Tensor) -> Tensor:
            rows = self.model.fisher_times(drawn, unflat(v, layers))
            return flat(mean_gradients(rows)) + self.damping * v

        if self.last is not None and len(self.last) != len(b):  # parameters have been frozen or freed since
            self.last = None
        kept, done = conjugate_gradients(
            times,
            b,
            start=torch.zeros_like(b) if self.last is None else self.warm * self.last,
            scale=(flat(squares(ios)) + self.damping) ** POWER,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        self.inner_iterations += done
        self.last = kept[-1].x
        return kept

    def state_dict(self) -> StateDict:
        return {"damping": self.damping, "last": self.last, "inner_iterations": self.inner_iterations}

    def load_state_dict(self, state: StateDict) -> None:
        self.damping, self.last = state["damping"], state["last"]
        self.inner_iterations = state["inner_iterations"]

    def _step(self, batch: Batch, layers: list[nn.Linear], kept: list[Iterate], b: Tensor) -> None:
        """A loss an iterate looked at, and one a length: move the parameters, and adapt λ."""
        before = self._loss(batch)
        if before == math.inf:
            raise FloatingPointError(
                "the loss is not finite before a step: its batch is not, or the model has diverged"
            )
        start = [parameter.clone() for parameter in self.parameters]

        def place(x: Tensor, rate: float) -> None:
            for parameter, value in zip(self.parameters, start, strict=True):
                parameter.copy_(value)
            move(layers, unflat(rate * x, layers))

        def loss_at(x: Tensor, rate: float) -> float:
            place(x, rate)
            return self._loss(batch)

        chosen, after = kept[-1], loss_at(kept[-1].x, 1.0)
        for earlier in reversed(kept[:-1]):
            found = loss_at(earlier.x, 1.0)
            if not found < after:
                break
            chosen, after = earlier, found
        self._adapt(after - before, chosen.q)
        self.rate = line_search(lambda rate: loss_at(chosen.x, rate), before, after, -(b @ chosen.x).item())
        place(chosen.x, self.rate)
        if not self.rate:
            self.last = None  # nor is it a start for the next

    def _loss(self, batch: Batch) -> float:
        """Return the batch's loss, infinite where it is not finite, so that comparisons hold."""
        loss = self.model.loss(batch).item()
        return loss if math.isfinite(loss) else math.inf

    def _adapt(self, change: float, foretold: float) -> None:
        """λ by the Levenberg–Marquardt rule, from the share of the foretold change that came."""
        if foretold < 0 and change / foretold > GOOD:
            self.damping = max(self.floor, self.damping / CHANGE)
        elif not foretold < 0 or change / foretold < POOR:
            self.damping *= CHANGE

    def _left_out(self, layers: list[nn.Linear]) -> list[nn.Parameter]:
        served = {id(p) for layer in layers for p in (layer.weight, layer.bias)}
        return [p for p in self.parameters if id(p) not in served]


def line_search(loss_at: Callable[[float], float], before: float, after: float, slope: float) -> float:
    """A loss a try: the first of 1, SHORTER, … at which the loss falls by SLOPE of what its slope foretells, else 0.

    ``before`` and ``after`` are the losses at 0 and 1.
    """
    rate = 1.0
    for _ in range(TRIES):
        if slope < 0 and after <= before + SLOPE * rate * slope:
            return rate
        rate *= SHORTER
        after = loss_at(rate)
    return 0.0
