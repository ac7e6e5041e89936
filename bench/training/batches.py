"""Batches of the train rows: the same for every optimizer of one seed."""

from __future__ import annotations

import torch
from torch import Tensor

from stepscale.models import Batch, each, rows_of


class Stream:
    """Batches of the train rows, shuffled anew each epoch: the same for every optimizer of one seed.

    Args:
        rows: to train on.
        batch: rows of a batch; of the first one, where they grow.
        seed: of the order.
        full_at: the step, counted from 1, whose batch has all rows; until then its size grows by one factor a step
            (Martens & Grosse 2015, section 13), and each batch is of a shuffle of its own. None keeps ``batch``.

    Raises:
        ValueError: there are fewer rows than a batch has.
    """

    def __init__(self, rows: Batch, batch: int, seed: int, full_at: int | None = None) -> None:
        if rows_of(rows) < batch:
            raise ValueError(f"the data have {rows_of(rows)} train rows, a batch has {batch}: lower batch")
        self.rows, self.count, self.batch, self.seed, self.full_at = rows, rows_of(rows), batch, seed, full_at
        self.device = (rows if isinstance(rows, Tensor) else rows[0]).device
        self._epoch, self._order = -1, torch.empty(0)

    def size(self, position: int) -> int:
        """How many rows the batch of a step has; ``position`` counts from 0."""
        if self.full_at is None:
            return self.batch
        if position + 1 >= self.full_at:
            return self.count
        return int(self.batch * (self.count / self.batch) ** (position / (self.full_at - 1)))

    def at(self, position: int) -> Batch:
        """Return the batch of a step, ``[batch, dim]``, or inputs and targets."""
        epoch, place = divmod(position, self.count // self.batch) if self.full_at is None else (position, 0)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator).to(self.device)
        size = self.size(position)
        chosen = self._order[place * size : (place + 1) * size]
        return each(self.rows, lambda part: part[chosen])
