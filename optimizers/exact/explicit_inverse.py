"""The log-determinant's gradient by an inverse that is formed, each step or now and then."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, LayerIO, LogDet, inverse_transpose
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, StateDict, no_mark, require
from stepscale.optimizers.core.trained import gradient_of, trained


class ExplicitInverse:
    """O(L B d²), and O(L d³) every ``interval`` steps: δᵀa/B − W⁻ᵀ with the inverse formed.

    ``interval`` 1 is the exact gradient; a longer one leaves W⁻ᵀ stale in between. Any Euclidean update goes with it.

    Raises:
        ValueError: ``interval`` is out of its range.
        TypeError: the model has no ``capture``, or a layer no log-determinant.
        FloatingPointError: when called, and a weight is singular.
    """

    def __init__(self, model: nn.Module, interval: int = 1) -> None:
        self.model = require(model, Captures, "explicit inverse")
        if interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {interval}")
        exact = interval == 1
        log_det = LogDet.EXACT if exact else LogDet.STALE
        self.facts = Facts(period=interval, log_det=log_det, writes_in_place=True, exact=exact)
        self.interval = interval
        self.steps = 0
        self.inverses: dict[int, Tensor] = {}  # of weights that have been trained, by their place in what is captured

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = captured(self.model, batch, "explicit inverse")
        mark("gradient")
        renewed = self.steps % self.interval == 0
        for place, io in ios:
            if io.log_det and (renewed or place not in self.inverses):  # as of a weight that has been freed since
                self.inverses[place] = inverse_transpose(io.layer.weight)
        if renewed:
            mark("inverse")
        for place, io in ios:
            write_gradient(io, self.inverses[place] if io.log_det else None)
        mark("gradient")
        self.steps += 1

    def state_dict(self) -> StateDict:
        return {"steps": self.steps, "inverses": dict(self.inverses)}

    def load_state_dict(self, state: StateDict) -> None:
        self.steps, self.inverses = state["steps"], dict(state["inverses"])


def captured(model: Captures, batch: Batch, what: str) -> list[tuple[int, LayerIO]]:
    """Capture what is trained, and see that every weight has the log-determinant that is to be got around.

    With each layer goes the place of its weight among all that is captured, whether trained or not; −1 of a bias alone.
    """
    ios = model.capture(batch)
    places = {id(io.layer.weight): place for place, io in enumerate(ios)}
    return [(places.get(id(io.layer.weight), -1), io) for io in trained(ios, what)]


def write_gradient(io: LayerIO, inverse: Tensor | None) -> None:
    """O(B d²): δᵀa/B − ``inverse``, ``[dim, dim]``, if there is one, and mean δ into ``.grad``."""
    W, b, share = io.layer.weight, io.layer.bias, 1 / len(io.a)
    if inverse is None:
        torch.mm(io.delta.T, io.a, out=gradient_of(W)).mul_(share)
    else:
        torch.addmm(inverse, io.delta.T, io.a, beta=-1, alpha=share, out=gradient_of(W))
    if b is not None:
        torch.sum(io.delta, 0, out=gradient_of(b)).mul_(share)
