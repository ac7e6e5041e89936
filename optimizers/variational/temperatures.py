"""A sequence of temperatures: thermal states one after the other, each begun where the last was left.

Sbahi et al. 2022, arXiv 2206.04663, section 5: neighbouring states are near in the information geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from stepscale.models import Batch
from stepscale.optimizers.core.step import Mark, StateDict, Step, no_mark
from stepscale.optimizers.variational.mirror import thermal


class TemperatureSequence:
    """A step of a thermal state whose target goes through inverse temperatures, some steps each, and stays at the last.

    Its state is the number of steps; the temperature is the model's own state, and restored with it.

    Args:
        model: a ``ThermalState``.
        step: builds the step.
        betas: inverse temperatures, in their order.
        interval: steps at each.

    Raises:
        ValueError: there is no temperature, one is not above 0, or ``interval`` is below 1.
        TypeError: the model is no ``ThermalState``.
    """

    def __init__(
        self, model: nn.Module, step: Callable[[nn.Module], Step], *, betas: Sequence[float], interval: int
    ) -> None:
        self.model = thermal(model, "a sequence of temperatures")
        if not betas or not all(beta > 0 for beta in betas) or interval < 1:
            raise ValueError(f"betas must be some above 0 and interval at least 1, got {list(betas)} and {interval}")
        self.step, self.betas, self.interval, self.calls = step(model), list(betas), interval, 0
        self.facts = self.step.facts

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self._meet()
        self.calls += 1
        self.step(batch, mark)

    def state_dict(self) -> StateDict:
        return {"step": self.step.state_dict(), "calls": self.calls}

    def load_state_dict(self, state: StateDict) -> None:
        self.step.load_state_dict(state["step"])
        self.calls = state["calls"]

    def _meet(self) -> None:
        """Give the model the target of the coming step."""
        beta = self.betas[min(self.calls // self.interval, len(self.betas) - 1)]
        if self.model.beta != beta:
            self.model.set_beta(beta)
