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
        FloatingPointError: at the first step, and a weight is singular.
    """

    facts = Facts(log_det=LogDet.BIASED, writes_in_place=True)

    def __init__(self, model: nn.Module, rate: float = 0.5) -> None:
        self.model = require(model, Captures, "self-normalizing")
        if not 0 < rate < 2:
            raise ValueError(f"rate must lie in (0, 2), got {rate}")
        self.rate = rate
        self.inverses: list[Tensor | None] = []  # None of a layer whose weight is frozen

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = captured(self.model, batch, "self-normalizing")
        self.inverses = self.inverses or [
            inverse_transpose(io.layer.weight).T.contiguous() if io.log_det else None for io in ios
        ]
        for io, R in zip(ios, self.inverses, strict=True):
            if R is None:
                continue
            missed = torch.addmm(io.a, io.u, R.T, beta=-1)
            R.addmm_(missed.T, io.u.div(io.u.square().sum().clamp_min(1e-30)), alpha=-self.rate)
        mark("inverse")
        for io, R in zip(ios, self.inverses, strict=True):
            write_gradient(io, None if R is None else R.T)
        mark("gradient")

    def state_dict(self) -> StateDict:
        return {"inverses": list(self.inverses)}

    def load_state_dict(self, state: StateDict) -> None:
        own = set(map(id, self.inverses))  # they are changed in place, and would be in the caller's tensors
        self.inverses = [R if R is None or id(R) in own else R.clone() for R in state["inverses"]]
