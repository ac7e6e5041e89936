"""Batches of the train rows: the same for every optimizer of one seed."""

from __future__ import annotations

import torch
from torch import Tensor

from stepscale.models import Batch, each, rows_of


class Stream:
    """Batches of the train rows, shuffled anew each epoch: the same for every optimizer of one seed.

    Raises:
        ValueError: there are fewer rows than a batch has.
    """

    def __init__(self, rows: Batch, batch: int, seed: int) -> None:
        if rows_of(rows) < batch:
            raise ValueError(f"the data have {rows_of(rows)} train rows, a batch has {batch}: lower batch")
        self.rows, self.count, self.batch, self.seed = rows, rows_of(rows), batch, seed
        self.device = (rows if isinstance(rows, Tensor) else rows[0]).device
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, position: int) -> Batch:
        """Return the batch of a step, ``[batch, dim]``, or inputs and targets."""
        epoch, place = divmod(position, self.count // self.batch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator).to(self.device)
        chosen = self._order[place * self.batch : (place + 1) * self.batch]
        return each(self.rows, lambda part: part[chosen])
