"""The log-determinant's gradient by an inverse that is formed, each step or now and then."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, LayerIO, LogDet, inverse_transpose
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.frames import require_log_dets
from stepscale.optimizers.core.step import Mark, StateDict, gradient_of, no_mark, require


class ExplicitInverse:
    """O(L B d²), and O(L d³) every ``interval`` steps: δᵀa/B − W⁻ᵀ with the inverse formed.

    ``interval`` 1 is the exact gradient; a longer one leaves W⁻ᵀ stale in between. Any Euclidean update goes with it.

    Raises:
        ValueError: ``interval`` is out of its range.
        TypeError: the model has no ``capture``, or a layer no log-determinant.
    """

    def __init__(self, model: nn.Module, interval: int = 1) -> None:
        self.model = require(model, Captures, "explicit inverse")
        if interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {interval}")
        log_det = LogDet.EXACT if interval == 1 else LogDet.STALE
        self.facts = Facts(period=interval, log_det=log_det, writes_in_place=True)
        self.interval = interval
        self.steps = 0
        self.inverses: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = captured(self.model, batch, "explicit inverse")
        mark("gradient")
        if self.steps % self.interval == 0:
            self.inverses = [inverse_transpose(io.layer.weight) for io in ios]
            mark("inverse")
        for io, inverse in zip(ios, self.inverses, strict=True):
            write_gradient(io, inverse)
        mark("gradient")
        self.steps += 1

    def state_dict(self) -> StateDict:
        return {"steps": self.steps, "inverses": list(self.inverses)}

    def load_state_dict(self, state: StateDict) -> None:
        self.steps, self.inverses = state["steps"], list(state["inverses"])


def captured(model: Captures, batch: Batch, what: str) -> list[LayerIO]:
    """Capture a batch, and see that every layer has the log-determinant that is to be got around."""
    ios = model.capture(batch)
    require_log_dets(ios, what)
    return ios


def write_gradient(io: LayerIO, inverse: Tensor) -> None:
    """O(B d²): δᵀa/B − ``inverse``, ``[dim, dim]``, and mean δ into ``.grad``."""
    W, b, share = io.layer.weight, io.layer.bias, 1 / len(io.a)
    torch.addmm(inverse, io.delta.T, io.a, beta=-1, alpha=share, out=gradient_of(W))
    if b is not None:
        torch.sum(io.delta, 0, out=gradient_of(b)).mul_(share)
