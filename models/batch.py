"""Batches: rows, or inputs and their targets."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Batch = Tensor | tuple[Tensor, Tensor]
"""``[batch, dim]``, or inputs and targets."""


def each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Change a batch, or its inputs and its targets."""
    return change(batch) if isinstance(batch, Tensor) else (change(batch[0]), change(batch[1]))


def rows_of(batch: Batch) -> int:
    """How many rows a batch has."""
    return len(batch if isinstance(batch, Tensor) else batch[0])


def require_rows(count: int) -> None:
    """Raise a ``ValueError`` where a batch has none."""
    if not count:
        raise ValueError("the batch has no rows, and a mean over them is no number: leave it out")


def tokens_of_row(batch: Batch) -> int:
    """How many of a batch's number a row is: as many as it has tokens with a target of their own; else one."""
    targets = batch if isinstance(batch, Tensor) else batch[1]
    return 1 if isinstance(batch, Tensor) or targets.is_floating_point() or targets.ndim < 2 else targets[0].numel()
