"""Ways around the log-determinant's gradient W⁻ᵀ in the Euclidean frame: explicit, stale, stochastic, learned.

All of them take the rest of the gradient from ``capture``: δᵀa/B − W⁻ᵀ and mean δ, or −W⁻ᵀ replaced. Each says in
``facts`` what its log-determinant's part is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, LayerIO, LogDet, inverse_transpose
from stepscale.optimizers.facts import Facts
from stepscale.optimizers.frames import require_log_dets
from stepscale.optimizers.step import Mark, StateDict, Stateless, gradient_of, no_mark, require


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


class StochasticTrace(Stateless):
    """O(L (B d² + d³)), a third of an inverse's d³: W⁻ᵀ = E[(W⁻ᵀ ε) εᵀ], one solve a probe ε of signs; unbiased.

    Hutchinson 1990's estimator of the trace in d log|det W| = tr(W⁻¹ dW); its variance grows with the dim.

    Raises:
        ValueError: ``probes`` is out of its range.
        TypeError: the model has no ``capture``, or a layer no log-determinant.
    """

    facts = Facts(log_det=LogDet.STOCHASTIC, writes_in_place=True)

    def __init__(self, model: nn.Module, probes: int = 1) -> None:
        self.model = require(model, Captures, "stochastic trace")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        self.probes = probes

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        for io in captured(self.model, batch, "stochastic trace"):
            W = io.layer.weight
            signs = torch.randint(0, 2, (len(W), self.probes), device=W.device).to(W.dtype).mul_(2).sub_(1)
            write_gradient(io, torch.linalg.solve(W.T, signs) @ signs.T / self.probes)
        mark("gradient")


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
    """

    facts = Facts(log_det=LogDet.BIASED, writes_in_place=True)

    def __init__(self, model: nn.Module, rate: float = 0.5) -> None:
        self.model = require(model, Captures, "self-normalizing")
        if not 0 < rate < 2:
            raise ValueError(f"rate must lie in (0, 2), got {rate}")
        self.rate = rate
        self.inverses: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = captured(self.model, batch, "self-normalizing")
        self.inverses = self.inverses or [torch.linalg.inv(io.layer.weight) for io in ios]
        for io, R in zip(ios, self.inverses, strict=True):
            missed = torch.addmm(io.a, io.u, R.T, beta=-1)
            R.addmm_(missed.T, io.u.div(io.u.square().sum().clamp_min(1e-30)), alpha=-self.rate)
        mark("inverse")
        for io, R in zip(ios, self.inverses, strict=True):
            write_gradient(io, R.T)
        mark("gradient")

    def state_dict(self) -> StateDict:
        return {"inverses": list(self.inverses)}

    def load_state_dict(self, state: StateDict) -> None:
        self.inverses = [inverse.clone() for inverse in state["inverses"]]  # changed in place


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
