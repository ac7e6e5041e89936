"""How a direction comes by the log-determinant's gradient, and how far it points from the exact gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepscale.bench.notes import Notes
from stepscale.bench.records.schema import Gradient
from stepscale.bench.timing.workload import Workload
from stepscale.models import objective_of
from stepscale.optimizers import Layerwise, no_mark

WIDEST = 4096  # the exact gradient is cubic


def agreement(workload: Workload, dim: int, notes: Notes) -> Gradient:
    """O(d³): how the log-determinant's gradient is come by, and the cosine of what is written to the exact gradient.

    Taken on the last step of a period, where what is stale is most so. The cosine is None where a step writes no
    ``.grad``, where the exact gradient takes too long, and where it fails; then ``notes`` says why.
    """
    found = Gradient(log_det=log_det_of(workload))
    if dim <= WIDEST:
        with notes.optional("cosine"):
            found.cosine = _cosine(workload)
    return found


def log_det_of(workload: Workload) -> str | None:
    """Return what the model declares of it, or else the step; None where the likelihood is of targets."""
    objective = objective_of(workload.model)
    if objective.of_targets:
        return None
    declared = objective.log_det or workload.facts.log_det
    return None if declared is None else str(declared)


def _cosine(workload: Workload) -> float | None:
    workload.run((-workload.position - 1) % workload.period, no_mark)  # as written: another compilation says no more
    model = workload.model
    model.zero_grad()
    Layerwise(model)(workload.batches[workload.position % len(workload.batches)])
    exact = _flat(model)
    model.zero_grad()
    workload.run(1, no_mark)
    written = _flat(model)
    if exact is None or written is None:
        return None
    cosine = float(exact @ written / (exact.norm() * written.norm()))
    return cosine if math.isfinite(cosine) else None


def _flat(model: torch.nn.Module) -> Tensor | None:
    """Return the gradients of all that is trained as one float64 vector; None where a parameter has none."""
    found = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    if any(gradient is None for gradient in found):
        return None
    return torch.cat([gradient.detach().flatten().double() for gradient in found if gradient is not None])
