"""What K-FAC's paper adds to its direction: step size, momentum and damping from the quadratic model; and KL clipping.

Martens & Grosse 2015, arXiv 1503.05671, sections 6.4, 6.5 and 7: with M(δ) = ½ δᵀ(F + λ I)δ + ∇ᵀδ and F the exact
Fisher matrix of the batch, the update is the δ = α Δ + μ δ₀ that minimises M, Δ the K-FAC direction and δ₀ the last
update; and λ follows how well M foretells the loss. Ba, Grosse & Martens 2017, and Wu et al. 2017, arXiv 1708.05144,
section 3.2: a step is shortened so that it changes the distribution by little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, FisherRoots, HasLoss, LayerIO, Tangents, slopes
from stepscale.optimizers.core.step import LearnsAfterwards, Mark, StateDict, no_mark, require, require_served
from stepscale.optimizers.core.tangents import combined, gradients, inner, move
from stepscale.optimizers.core.trained import trainable, trained
from stepscale.optimizers.kronecker.base import Kronecker

SHRINK = 19 / 20  # of λ, a step: ω₁ = SHRINK ** interval
POOR, GOOD = 1 / 4, 3 / 4  # of the foretold change, by which λ grows or shrinks
LEAST = 1e-5  # λ


class Curved(HasLoss, Captures, FisherRoots, Protocol):
    """A model whose loss and its quadratic model can be evaluated."""


class QuadraticStep:
    """K-FAC's own update; O(B P) a step beside the direction, and O(L d³) where there are log-determinants.

    Args:
        model: offers ``loss``, ``capture`` and ``fisher_roots``.
        direction: builds the ``Kronecker`` direction Δ; its ``damping`` is λ₀.
        momentum: whether δ₀ takes part; without it only the step's length is chosen.
        interval: T₁, steps between adaptations of λ, each at the cost of two more losses; None to keep λ.

    Attributes:
        damping: λ now.
        coefficients: α and μ of the last step.

    Raises:
        ValueError: ``interval`` is out of its range.
        TypeError: the model lacks a method, or the direction is no ``Kronecker`` one.
        FloatingPointError: when called, and the parameters have diverged.
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Callable[[nn.Module], Kronecker[Any]],
        *,
        momentum: bool = True,
        interval: int | None = 5,
    ) -> None:
        self.model = require(model, Curved, "quadratic model's step")
        if interval is not None and interval < 1:
            raise ValueError(f"interval must be at least 1 step, or null, got {interval}")
        self.parameters = trainable(model)
        self.direction, self.momentum, self.interval = kronecker_of(model, direction), momentum, interval
        if isinstance(self.direction, LearnsAfterwards):
            raise TypeError(
                f"{type(self.direction).__name__} learns after each step, of which a quadratic model's step tells "
                "nothing: give it to pair or to a trust region"
            )
        period = math.lcm(self.direction.facts.period, interval or 1)
        self.facts = replace(self.direction.facts, period=period)
        self.steps = 0
        self.last: Tangents = []  # δ₀
        self.coefficients = torch.zeros(2, dtype=torch.float64)

    @property
    def damping(self) -> float:
        return self.direction.damping

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.model.capture(batch)
        trained(ios)  # refuses tied layers, over which the sums below would go twice
        self.direction.apply(ios, mark)
        if self.steps == 0:
            require_served(type(self.direction).__name__, (p for p in self.parameters if p.grad is None))
        layers = [io.layer for io in ios]
        directions = [gradients(layers)] + ([self.last] if self.last else [])
        weights, foretold = minimum(ios, directions, self.model.fisher_roots(ios, directions), self.damping)
        self.coefficients = torch.nn.functional.pad(weights, (0, 2 - len(weights)))
        adapting = self.interval is not None and (self.steps + 1) % self.interval == 0
        before = self.model.loss(batch) if adapting else foretold
        update = combined(weights, directions)
        move(layers, update)
        self.last = update if self.momentum else []
        if adapting:
            self._adapt((self.model.loss(batch) - before).item(), foretold.item())
        self.steps += 1
        mark("update")

    def state_dict(self) -> StateDict:
        return {
            "direction": self.direction.state_dict(),
            "damping": self.damping,
            "steps": self.steps,
            "last": [list(part) for part in self.last],
        }

    def load_state_dict(self, state: StateDict) -> None:
        self.direction.load_state_dict(state["direction"])
        self.direction.damping, self.steps = state["damping"], state["steps"]
        self.last = [(dW, db) for dW, db in state["last"]]

    def _adapt(self, change: float, foretold: float) -> None:
        """λ by the Levenberg–Marquardt rule, from the share of the foretold change that came."""
        if not math.isfinite(change):
            raise FloatingPointError(f"the loss is not finite after a step at damping={self.damping:g}: raise damping")
        factor = SHRINK ** (self.interval or 1)
        if foretold < 0 and change / foretold > GOOD:
            self.direction.damping = max(LEAST, self.damping * factor)
        elif foretold < 0 and change / foretold < POOR:
            self.direction.damping /= factor


def kronecker_of(model: nn.Module, direction: Callable[[nn.Module], Kronecker[Any]]) -> Kronecker[Any]:
    """Build a direction whose layers' captured batch can be used twice.

    Raises:
        TypeError: it is of another kind.
    """
    built = direction(model)
    if not isinstance(built, Kronecker):
        raise TypeError(f"the direction must be one of curvature in factors, as KFAC, got {type(built).__name__}")
    return built


def minimum(
    ios: list[LayerIO], directions: list[Tangents], roots: list[Tensor], damping: float
) -> tuple[Tensor, Tensor]:
    """O(B P), as ``slopes`` more: the weights of the directions that minimise M, ``[n]``, and M there less M(0).

    ``roots`` are X v of each, XᵀX / B = F. The inner products of λ are those of the parameters in either frame.
    """
    products = [[damping * inner(u, v) for v in directions] for u in directions]
    curvature = torch.stack([torch.stack(row) for row in products])
    tiny = torch.finfo(ios[0].y.dtype).eps  # what the sums resolve
    stacked = torch.stack([root.flatten() for root in roots]).double()
    curvature = curvature + stacked @ stacked.T / len(ios[0].y)
    slope = torch.stack([slopes(ios, direction).mean().double() for direction in directions])
    # of a 2×2 matrix, where no launch and no wait is dear
    weights = -least_squares(curvature.cpu(), slope.cpu(), tiny).to(slope.device)
    return weights, 0.5 * slope @ weights


def least_squares(M: Tensor, right: Tensor, tiny: float) -> Tensor:
    """M⁺ right for a small symmetric positive semi-definite matrix: the directions may be parallel.

    Eigenvalues below ``tiny`` times the largest count as none, after scaling to a unit diagonal.

    Raises:
        FloatingPointError: it is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("the quadratic model is not finite: raise damping")
    size = M.diagonal().clamp_min(torch.finfo(M.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(M / torch.outer(size, size))
    inverse = torch.where(values > tiny * values[-1], 1 / values, 0.0)
    return vectors @ (inverse * (vectors.T @ (right / size))) / size
