"""What an exception makes of a cell: a status and a reason."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stepscale.bench.cells.build import moved
from stepscale.bench.errors import DivergedError, TooSlowError, UsageError, WrongGradientError
from stepscale.bench.machine import generators
from stepscale.bench.notes import one_line
from stepscale.bench.records.schema import Status
from stepscale.bench.training.evaluation import copied
from stepscale.models import Batch, Captures, HasLoss, log_abs_det_and_rounding, offers

OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "want of memory",  # our own words of a process that was killed
)


def classify(error: BaseException) -> tuple[Status, str]:
    """Return the status and the reason that an exception gives a cell."""
    reason = one_line(error)
    own_words = reason.removeprefix(f"{type(error).__name__}: ")
    if isinstance(error, DivergedError | FloatingPointError):  # the latter from a direction that met a NaN
        return Status.DIVERGED, own_words
    if isinstance(error, TooSlowError):
        return Status.TOO_SLOW, own_words
    if isinstance(error, WrongGradientError):
        return Status.WRONG_GRADIENT, own_words
    if isinstance(error, UsageError):
        return Status.FAILED, own_words
    words = reason.lower()
    if "not implemented for" in words:  # torch's, of a number type that a factorisation has no code for
        return Status.FAILED, f"{reason}: use dtype=float32, or an optimizer that factorises nothing, as relative"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or wants_memory(reason):
        return Status.OUT_OF_MEMORY, reason
    return Status.FAILED, reason


def wants_memory(reason: str) -> bool:
    """Whether a reason says that there was too little memory."""
    return any(words in reason.lower() for words in OUT_OF_MEMORY)


def may_come_from_the_start(error: BaseException) -> bool:
    """Whether an exception may be how a step met a model that cannot be trained from where it starts."""
    return isinstance(error, ArithmeticError | torch.linalg.LinAlgError)  # type: ignore[attr-defined]


@torch.no_grad()
def fault_of_start(model: nn.Module, batch: Batch) -> str | None:
    """O(L (B d² + d³)): say why a model cannot be trained from where it starts, or None where its loss is finite there.

    Optimizers meet a singular weight in different ways, a NaN, a factorisation that fails or, by a rounding, a huge
    gradient: it is one cause. The model stays as it is, and so do the generators.
    """
    device = next(model.parameters()).device
    exact, rows = copied(model).double(), moved(batch, device, torch.float64)
    modules = dict(exact.named_modules())
    assert offers(exact, HasLoss)
    with generators.kept(device):
        loss = exact.loss(rows).item()
        ios = exact.capture(rows) if offers(exact, Captures) else []
    has_log_det = {id(io.layer) for io in ios if io.log_det}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer.in_features != layer.out_features:
            continue
        if (id(modules[name]) in has_log_det or not math.isfinite(loss)) and is_singular(layer.weight):
            return (
                f"the weight of {name} is singular at the start, if only to rounding, so that log|det W| is not known: "
                "start from a regular one, as nn.init.orthogonal_ makes"
            )
    return (
        None if math.isfinite(loss) else f"the loss is {loss} at the start, before any step: start from other weights"
    )


def is_singular(W: Tensor) -> bool:
    """O(d³): whether a rounding of W in its own type may change log|det W| by a nat a dimension or more."""
    return not log_abs_det_and_rounding(W)[1] < len(W)
