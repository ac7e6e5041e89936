"""The log-determinant's gradient by one solve against random signs."""

from __future__ import annotations

import torch
from torch import nn

from stepscale.models import Batch, Captures, LogDet, solved
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require
from stepscale.optimizers.exact.explicit_inverse import captured, write_gradient


class StochasticTrace(Stateless):
    """O(L (B d² + d³)), a third of an inverse's d³: W⁻ᵀ = E[(W⁻ᵀ ε) εᵀ], one solve a probe ε of signs; unbiased.

    Hutchinson 1990's estimator of the trace in d log|det W| = tr(W⁻¹ dW); its variance grows with the dim.

    Raises:
        ValueError: ``probes`` is out of its range.
        TypeError: the model has no ``capture``, or a layer no log-determinant.
        FloatingPointError: when called, and a weight is singular.
    """

    facts = Facts(log_det=LogDet.STOCHASTIC, writes_in_place=True)

    def __init__(self, model: nn.Module, probes: int = 1) -> None:
        self.model = require(model, Captures, "stochastic trace")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        self.probes = probes

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        for _, io in captured(self.model, batch, "stochastic trace"):
            if not io.log_det:
                write_gradient(io, None)
                continue
            W = io.layer.weight
            signs = torch.randint(0, 2, (len(W), self.probes), device=W.device).to(W.dtype).mul_(2).sub_(1)
            write_gradient(io, solved(W.T, signs) @ signs.T / self.probes)
        mark("gradient")
