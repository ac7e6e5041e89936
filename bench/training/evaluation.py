"""What a training run is judged by: the likelihood of a split, in float64, by a copy of the model in eval mode."""

from __future__ import annotations

import math
from copy import deepcopy
from types import MethodType
from typing import TypeGuard

import torch
from torch import Tensor, nn

from stepscale.bench.machine import generators
from stepscale.models import Batch, HasLoss, each, rows_of, tokens_of_row
from stepscale.optimizers import LearnedRates, Paired, Step, TemperatureSequence, averaged

ROWS = 8_192  # evaluated at once, or as many tokens
SEED = 0  # of what a loss draws: every evaluation draws the same


def judged(model: nn.Module, step: Step) -> nn.Module:
    """Return a copy of the model in eval mode, at the parameters by which its update is to be judged.

    The model itself is left as it was, bit for bit; an update's own way back may round.
    """
    # before its first step an average is where it begins
    moving = [part for part in averaged(update_of(step)) if _has_stepped(part)]
    if not moving:
        return copied(model).eval()
    trained = [parameter.detach().clone() for parameter in model.parameters()]
    for part in moving:
        part.eval()
    try:
        return copied(model).eval()
    finally:
        for part in moving:
            part.train()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), trained, strict=True):
                parameter.copy_(value)


def update_of(step: Step) -> object:
    """Return what moves the parameters: a step's update, through the steps that are around it, or the step itself."""
    while isinstance(step, LearnedRates | TemperatureSequence):
        step = step.step
    return step.update if isinstance(step, Paired) else step


def _has_stepped(update: object) -> bool:
    return not isinstance(update, torch.optim.Optimizer) or bool(update.state)


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, without the hooks of an update, to which any rows would be a batch of training."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    updates = {id(hook.__self__): hook.__self__ for hook in hooks if _is_an_updates(hook)}
    found = deepcopy(model, updates)  # they stay themselves
    for module in found.modules():
        for key in [key for key, hook in module._forward_hooks.items() if _is_an_updates(hook)]:
            del module._forward_hooks[key]
    return found


def _is_an_updates(hook: object) -> TypeGuard[MethodType]:
    return isinstance(hook, MethodType) and isinstance(hook.__self__, torch.optim.Optimizer)


@torch.no_grad()
def mean_log_likelihood(exact: HasLoss, batch: Batch) -> float:
    """O(L (n d² + d³)): mean over rows ``[n, dim]`` in nats, by a float64 model; twice the same, whatever it draws."""
    count, parts, size = rows_of(batch), [], max(1, ROWS // tokens_of_row(batch))
    rows = batch if isinstance(batch, Tensor) else batch[0]
    with generators.kept(rows.device, SEED):
        for first in range(0, count, size):
            part = each(batch, lambda rows: _doubled(rows[first : first + size]))  # noqa: B023 - called at once
            parts.append(-rows_of(part) * exact.loss(part).item())
    return math.fsum(parts) / count


def _doubled(rows: Tensor) -> Tensor:
    return rows.double() if rows.is_floating_point() else rows
