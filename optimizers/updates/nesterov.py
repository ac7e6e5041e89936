"""Momentum that grows with the steps, classical or Nesterov's.

Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization and momentum in deep learning", eq. 1 to 5:

    v ← μ_t v − ε ∇f(θ + μ_t v),  θ ← θ + v,  μ_t = min(1 − 2^(−1 − log₂(⌊t/250⌋ + 1)), μ_max),

of which the classical form takes ∇f(θ). Nesterov's asks for the gradient where θ is not. In Θ_t = θ_t + μ_t v_t it is
v ← μ_t v − ε ∇f(Θ), Θ ← Θ + μ_{t+1} v − ε ∇f(Θ), so that the model holds Θ and no closure is needed. It is judged at θ.
Where μ_t has become another since Θ was made, as by a new ``momentum``, a step begins at θ + μ_t v.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from stepscale.optimizers.core.update import StateDict


class MomentumSchedule(torch.optim.Optimizer):
    """SGD whose momentum grows from ½ to ``momentum``; O(P), with a velocity, and while it is judged a copy besides.

    Args:
        params: as of every ``torch.optim.Optimizer``.
        lr: ε.
        momentum: μ_max, in [0, 1).
        interval: steps after which μ grows.
        nesterov: whether the gradient is taken ahead; else momentum is classical.

    Raises:
        ValueError: a number is out of its range.
        RuntimeError: at a step, or asked for its state, and the model is at θ.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.99,
        interval: int = 250,
        nesterov: bool = True,
    ) -> None:
        if not lr > 0 or not 0 <= momentum < 1 or interval < 1:
            given = f"lr={lr}, momentum={momentum}, interval={interval}"
            raise ValueError(f"a momentum schedule needs lr > 0, 0 ≤ momentum < 1 and interval ≥ 1, got {given}")
        self.ahead: list[tuple[Tensor, Tensor]] = []  # while it is judged: parameters, and where they train
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "interval": interval, "nesterov": nesterov, "taken": 0}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._require_ahead()
        for group in self.param_groups:
            now, then = momentum_at(group["taken"], group), momentum_at(group["taken"] + 1, group)
            group["taken"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "velocity" not in state:
                    state["velocity"], state["used"] = torch.zeros_like(parameter), now
                v = state["velocity"]
                if group["nesterov"] and state["used"] != now:
                    parameter.add_(v, alpha=now - state["used"])
                v.mul_(now).sub_(parameter.grad, alpha=group["lr"])
                if group["nesterov"]:
                    parameter.add_(v, alpha=then).sub_(parameter.grad, alpha=group["lr"])
                else:
                    parameter.add_(v)
                state["used"] = then

    @torch.no_grad()
    def eval(self) -> None:
        """Bring the parameters to θ."""
        if self.ahead:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if group["nesterov"] and "velocity" in state:
                    self.ahead.append((parameter, parameter.clone()))  # so that they come back to the bit
                    parameter.sub_(state["velocity"], alpha=state["used"])

    @torch.no_grad()
    def train(self) -> None:
        """Bring the parameters back to Θ."""
        for parameter, there in self.ahead:
            parameter.copy_(there)
        self.ahead = []

    def state_dict(self) -> StateDict:
        self._require_ahead()
        return super().state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        super().load_state_dict(state_dict)
        self.ahead = []  # the model is brought to what was saved of it

    def __getstate__(self) -> StateDict:
        return super().__getstate__() | {"ahead": self.ahead}

    def _require_ahead(self) -> None:
        if self.ahead:
            raise RuntimeError("the model holds θ, from which no training goes on: call train() before")


def momentum_at(taken: int, group: dict[str, Any]) -> float:
    """μ_t of the step after so many."""
    return min(1 - 0.5 / (taken // group["interval"] + 1), float(group["momentum"]))
