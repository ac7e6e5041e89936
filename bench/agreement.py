"""How a direction comes by the log-determinant's gradient, and how far it points from the exact gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stepscale.bench.notes import Notes
from stepscale.bench.schema import Gradient
from stepscale.bench.workload import Workload
from stepscale.optimizers import no_mark

WIDEST = 4096  # the exact gradient is cubic


def agreement(workload: Workload, dim: int, notes: Notes) -> Gradient:
    """O(d³): the model's or the step's ``log_det``, and the cosine of what it writes to the exact Euclidean gradient.

    Taken on the last step of a period, where what is stale is most so. The cosine is None where a step writes no
    ``.grad``, where the exact gradient takes too long, and where it fails; then ``notes`` says why.
    """
    model: Any = workload.model
    said = getattr(model, "log_det", None) or getattr(workload.step, "log_det", None)
    found = Gradient(log_det=None if getattr(model, "conditional", False) else said)
    if dim <= WIDEST:
        with notes.optional("cosine"):
            found.cosine = _cosine(workload)
    return found


def _cosine(workload: Workload) -> float | None:
    workload.run((-workload.position - 1) % workload.period, no_mark)  # as written: another compilation says no more
    model: Any = workload.model
    model.zero_grad()
    model.loss(workload.batches[workload.position % len(workload.batches)]).backward()
    exact = _flat(model)
    model.zero_grad()
    workload.run(1, no_mark)
    written = _flat(model)
    if exact is None or written is None:
        return None
    cosine = float(exact @ written / (exact.norm() * written.norm()))
    return cosine if math.isfinite(cosine) else None


def _flat(model: torch.nn.Module) -> Tensor | None:
    """Return all gradients as one float64 vector; None where a parameter has none."""
    found = [parameter.grad for parameter in model.parameters()]
    if any(gradient is None for gradient in found):
        return None
    return torch.cat([gradient.detach().flatten().double() for gradient in found if gradient is not None])
