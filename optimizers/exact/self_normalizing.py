"""The log-determinant's gradient by an inverse that is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, LogDet, inverse_transpose
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, StateDict, no_mark, require
from stepscale.optimizers.exact.explicit_inverse import captured, write_gradient


class SelfNormalizing:
    """O(L B d²): −Rᵀ in place of −W⁻ᵀ, R ≈ W⁻¹ learned by reconstructing each layer's input; biased.

    Keller, Peters, Jaini, Hoogeboom, Forré, Welling 2021, "Self normalizing flows", arXiv 2011.07248. R is trained here
    by normalised least mean squares, R ← R − ρ (R u − a) uᵀ / mean ‖u‖², u = a Wᵀ, and W by no reconstruction.

    Args:
        model: offers ``capture``; R starts as W⁻¹.
        rate: ρ, below 2 for stability.

    Raises:
        ValueError: ``rate`` is out of its range.
        TypeError: the model has no ``capture``, or a layer no log-determinant.
        FloatingPointError: at the first step of a weight, and it is singular.
    """

    facts = Facts(log_det=LogDet.BIASED, writes_in_place=True)

    def __init__(self, model: nn.Module, rate: float = 0.5) -> None:
        self.model = require(model, Captures, "self-normalizing")
        if not 0 < rate < 2:
            raise ValueError(f"rate must lie in (0, 2), got {rate}")
        self.rate = rate
        self.inverses: dict[int, Tensor] = {}  # of weights that have been trained, by their place in what is captured

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = captured(self.model, batch, "self-normalizing")
        for place, io in ios:
            if not io.log_det:
                continue
            if place not in self.inverses:
                self.inverses[place] = inverse_transpose(io.layer.weight).T.contiguous()
            R = self.inverses[place]
            missed = torch.addmm(io.a, io.u, R.T, beta=-1)
            R.addmm_(missed.T, io.u.div(io.u.square().sum().clamp_min(1e-30)), alpha=-self.rate)
        mark("inverse")
        for place, io in ios:
            write_gradient(io, self.inverses[place].T if io.log_det else None)
        mark("gradient")

    def state_dict(self) -> StateDict:
        return {"inverses": dict(self.inverses)}

    def load_state_dict(self, state: StateDict) -> None:
        own = set(map(id, self.inverses.values()))  # they are changed in place, and would be in the caller's tensors
        self.inverses = {place: R if id(R) in own else R.clone() for place, R in state["inverses"].items()}
