"""Polyak averaging: a training is judged at a running average of its iterates."""

from __future__ import annotations

import torch
from torch import Tensor

from stepscale.optimizers.core.step import StateDict


class IterateAverage:
    """θ̄ ← ξ_k θ̄ + (1 − ξ_k) θ_k, ξ_k = min(1 − 1/k, ξ): a plain mean at first, O(P) memory and a step.

    Martens & Grosse 2015, arXiv 1503.05671, section 13.

    Args:
        parameters: θ.
        decay: ξ.

    Raises:
        ValueError: ``decay`` is out of its range.
    """

    def __init__(self, parameters: list[Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"averaging must lie in [0, 1), or be null, got {decay}")
        self.parameters, self.decay, self.count = parameters, decay, 0
        self.mean = [parameter.detach().clone() for parameter in parameters]
        self.aside: list[Tensor] = []  # θ, while the model holds θ̄

    @torch.no_grad()
    def take(self) -> None:
        """Take the parameters into their average."""
        self.count += 1
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(parameter, 1 - min(1 - 1 / self.count, self.decay))

    @torch.no_grad()
    def show(self) -> None:
        """Bring the model to the average."""
        if not self.aside:
            self.aside = [parameter.detach().clone() for parameter in self.parameters]
            _copy(self.parameters, self.mean)

    @torch.no_grad()
    def hide(self) -> None:
        """Bring the model back to the parameters that are trained, bit for bit."""
        if self.aside:
            _copy(self.parameters, self.aside)
            self.aside = []

    def require_hidden(self) -> None:
        """See that the model holds the parameters that are trained.

        Raises:
            RuntimeError: it holds the average.
        """
        if self.aside:
            raise RuntimeError("the model holds its average, from which no training goes on: call train() before")

    def state_dict(self) -> StateDict:
        """Return the average; what is trained is the model's own, which it has to hold."""
        self.require_hidden()
        return {"count": self.count, "mean": list(self.mean)}

    @torch.no_grad()
    def load_state_dict(self, state: StateDict) -> None:
        self.count, self.aside = state["count"], []  # the model is brought to what was saved of it
        _copy(self.mean, state["mean"])


def _copy(to: list[Tensor], of: list[Tensor]) -> None:
    for one, other in zip(to, of, strict=True):
        one.copy_(other)
