"""How a direction comes by the log-determinant's gradient, and how far it points from the exact gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stepscale.bench.errors import WrongGradientError
from stepscale.bench.machine import generators
from stepscale.bench.notes import Notes
from stepscale.bench.records.schema import Gradient
from stepscale.bench.timing.workload import Workload
from stepscale.models import objective_of
from stepscale.optimizers import Layerwise, no_mark

WIDEST = 4096  # the exact gradient is cubic
LEAST = 0.999  # cosine of what calls itself exact: an error of 4 %, where float32 rounds by 6e-8 and cancels by 1e5


def agreement(workload: Workload, dim: int, notes: Notes) -> Gradient:
    """O(d³): how the log-determinant's gradient is come by, and the cosine of what is written to the exact gradient.

    Taken on the last step of a period, where what is stale is most so. The cosine is None where a step writes no
    ``.grad``, where the exact gradient takes too long or is not what trains the model, and where it fails; then
    ``notes`` says why.

    Raises:
        WrongGradientError: the step declares that it writes the exact gradient, and it does not. In bfloat16 and TF32
            this is not looked at: a gradient is a difference of large parts, and their rounding may be most of it.
    """
    found = Gradient(log_det=log_det_of(workload))
    if dim <= WIDEST:
        with notes.optional("cosine"):
            found.cosine = _cosine(workload)
    if found.cosine is not None and found.cosine < LEAST and workload.facts.exact and _rounds_finely(workload.model):
        raise WrongGradientError(
            f"the direction declares that it writes the exact gradient, but the cosine to that is {found.cosine:.3f}, "
            f"below {LEAST}: see what it or the model's capture() leaves out, or let its facts say exact=False"
        )
    return found


def log_det_of(workload: Workload) -> str | None:
    """Return what the model declares of it, or else the step; None where the likelihood is of targets."""
    objective = objective_of(workload.model)
    if objective.of_targets:
        return None
    declared = objective.log_det or workload.facts.log_det
    return None if declared is None else str(declared)


def _cosine(workload: Workload) -> float | None:
    if not objective_of(workload.model).differentiable:
        return None
    workload.run((-workload.position - 1) % workload.period, no_mark)  # as written: another compilation says no more
    exact = _exact(workload)
    written = _written(workload)
    if exact is None or written is None:
        return None
    cosine = _cosine_of(exact, written)
    if cosine < LEAST and workload.facts.exact and not _repeats(workload):
        raise ValueError("the loss is random, by a generator of its own: no two gradients of one batch are the same")
    return cosine if math.isfinite(cosine) else None


def _repeats(workload: Workload) -> bool:
    """Whether two exact gradients of one batch are the same."""
    one, other = _exact(workload), _exact(workload)
    return one is not None and other is not None and _cosine_of(one, other) >= LEAST


def _exact(workload: Workload) -> Tensor | None:
    """O(L (B d² + d³)): the gradient of the next batch's loss, as random as the next step's: it draws the same."""
    model, batches, device = workload.model, workload.batches, workload.device
    with generators.kept(device):
        model.zero_grad()
        Layerwise(model)(batches[workload.position % len(batches)])
    exact = _flat(model)
    model.zero_grad()
    return exact


def _written(workload: Workload) -> Tensor | None:
    """Run a step; return what its direction wrote, before an update that changes ``.grad`` itself."""
    seen: list[Tensor | None] = []
    hook = register_optimizer_step_pre_hook(lambda *_: seen.append(_flat(workload.model)))
    try:
        workload.run(1, no_mark)
    finally:
        hook.remove()
    return seen[0] if seen else _flat(workload.model)


def _cosine_of(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def _rounds_finely(model: nn.Module) -> bool:
    """Whether numbers and products are of float32's precision or better."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    return kinds <= {torch.float32, torch.float64} and torch.get_float32_matmul_precision() == "highest"


def _flat(model: nn.Module) -> Tensor | None:
    """Return the gradients of all that is trained as one float64 vector; None where a parameter has none."""
    found = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    if any(gradient is None for gradient in found):
        return None
    return torch.cat([gradient.detach().flatten().double() for gradient in found if gradient is not None])
