"""A learning rate and a momentum that follow the batch's Hessian.

Our reading of Granziol, Zohren & Roberts 2020, arXiv 2006.09092, section 7, of which no code of the authors' exists;
the rule of one product is their script's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import torch
from torch import nn

from stepscale.models import Batch, one_of
from stepscale.optimizers.core.step import Mark, Paired, StateDict, no_mark
from stepscale.optimizers.hessian.lanczos import heavy_ball, hessian_products, lanczos


class Rule(StrEnum):
    """By which rates are chosen."""

    POLYAK = "polyak"  # the best heavy ball for the eigenvalues' sizes
    CAUCHY = "cauchy"  # the step to the least of a parabola along the gradient; momentum stays


class LearnedRates:
    """A step whose update's ``lr``, and ``momentum``, are set anew every few steps; k products each time.

    Args:
        model: offers ``loss``.
        step: builds the step, of an update with ``lr`` and, for ``polyak``, ``momentum``.
        rule: ``"polyak"`` or ``"cauchy"``.
        lr: share of the rule's learning rate that is taken.
        interval: steps between two looks at the Hessian.
        iterations: k, of Lanczos, from a random vector; ``cauchy`` takes one from the gradient.
        floor: the smallest eigenvalue that counts, as a share of the largest. Few Lanczos steps overestimate the
            smallest one, and a Hessian has many near 0.
        momentum: the most.

    Raises:
        ValueError: a number is out of its range, ``rule`` is none, or the update has no such setting.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[nn.Module], Paired],
        *,
        rule: str = "polyak",
        lr: float = 1.0,
        interval: int = 50,
        iterations: int = 10,
        floor: float = 1e-3,
        momentum: float = 0.95,
    ) -> None:
        if not lr > 0 or interval < 1 or iterations < 1:
            given = f"lr={lr}, interval={interval}, iterations={iterations}"
            raise ValueError(f"learned rates need lr > 0, interval ≥ 1 and iterations ≥ 1, got {given}")
        if not 0 < floor <= 1 or not 0 <= momentum < 1:
            raise ValueError(f"learned rates need 0 < floor ≤ 1 and 0 ≤ momentum < 1, got {floor} and {momentum}")
        self.model, self.step, self.rule = model, step(model), one_of("rule", Rule, rule)
        self.lr, self.interval, self.iterations = lr, interval, iterations
        self.floor, self.momentum, self.calls = floor, momentum, 0
        self.update = self.step.update
        settings = ("lr", "momentum") if self.rule is Rule.POLYAK else ("lr",)
        if missing := [name for name in settings if any(name not in group for group in self.update.param_groups)]:
            raise ValueError(
                f"{type(self.update).__name__} has no {' and no '.join(missing)} to learn: take torch's SGD"
            )
        facts = self.step.facts
        self.facts = replace(facts, period=math.lcm(facts.period, interval))

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        if self.calls % self.interval == 0:
            self.learn(batch)
            mark("statistics")
        self.calls += 1
        self.step(batch, mark)

    def learn(self, batch: Batch) -> None:
        """K Hessian products: set the rates by the batch's eigenvalues; they stay where the loss has no curvature."""
        gradient, times = hessian_products(self.model, batch)
        if self.rule is Rule.CAUCHY:
            if not bool(gradient.any()):
                return
            curvature = lanczos(times, gradient, 1).values.abs().item()
            rates = {"lr": 1 / curvature} if curvature else {}
        else:
            sizes = lanczos(times, torch.randn_like(gradient), self.iterations).values.abs()
            largest = sizes.max().item()
            if not math.isfinite(largest):
                raise FloatingPointError(f"the Hessian is not finite: the parameters have diverged at lr={self.lr:g}")
            smallest = max(sizes.min().item(), self.floor * largest)
            rates = dict(zip(("lr", "momentum"), heavy_ball(largest, smallest), strict=True)) if largest else {}
        for group in self.update.param_groups:
            for name, value in rates.items():
                group[name] = self.lr * value if name == "lr" else min(value, self.momentum)

    def state_dict(self) -> StateDict:
        return {"step": self.step.state_dict(), "calls": self.calls}

    def load_state_dict(self, state: StateDict) -> None:
        self.step.load_state_dict(state["step"])
        self.calls = state["calls"]
