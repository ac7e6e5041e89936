"""What an exception makes of a cell: a status and a reason."""

from __future__ import annotations

import torch

from stepscale.bench.errors import DivergedError, TooSlowError, UsageError, WrongGradientError
from stepscale.bench.notes import one_line
from stepscale.bench.records.schema import Status

OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
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
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words_ in words for words_ in OUT_OF_MEMORY):
        return Status.OUT_OF_MEMORY, reason
    return Status.FAILED, reason
