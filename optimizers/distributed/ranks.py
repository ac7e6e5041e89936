"""The processes that share a step, by ``torch.distributed``: what of a batch each takes, and what they tell each other.

Nothing is sent where there is one process alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor, distributed

from stepscale.models import Batch, each, rows_of


@dataclass(frozen=True)
class Ranks:
    """This process, and how many there are."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Return this process's place in the default process group; alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def rows(self, batch: Batch) -> list[int]:
        """How many rows of a batch each rank takes: as many as the others, the first ranks one more.

        Raises:
            ValueError: they are fewer than the ranks.
        """
        rows = rows_of(batch)
        if rows < self.world:
            raise ValueError(f"a batch of {rows} rows leaves some of {self.world} ranks without any: raise the batch")
        return [rows // self.world + (rank < rows % self.world) for rank in range(self.world)]

    def part(self, batch: Batch) -> Batch:
        """Return the rows that this rank takes; all ranks have the whole batch, and take successive parts of it."""
        rows = self.rows(batch)
        first = sum(rows[: self.rank])
        return each(batch, lambda whole: whole[first : first + rows[self.rank]])

    @torch.no_grad()
    def total_(self, tensors: Sequence[Tensor], share: float) -> None:
        """Make tensors their sum over the ranks, each rank's times its share; one all-reduce of them all, in place."""
        if self.world > 1 and tensors:
            flat = packed(tensors).mul_(share)
            distributed.all_reduce(flat)
            unpack(flat, tensors)

    def gathered(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Join the ranks' rows of each tensor, in their order; one all-gather of them all.

        Args:
            tensors: this rank's part of each, ``[n · rows[rank], dim]``: n rows for each row of the batch.
            rows: of the batch, that each rank has. Who has one fewer than the first sends zeros in its place.
        """
        most, own, fuller = rows[0], rows[self.rank], rows.count(rows[0])
        copies = [len(tensor) // own for tensor in tensors]
        padded = [
            tensor if own == most else torch.cat([tensor, tensor.new_zeros(n, tensor.shape[1])])
            for tensor, n in zip(tensors, copies, strict=True)
        ]
        mine = packed(padded)
        whole = mine.new_empty(self.world, len(mine))
        distributed.all_gather([*whole], mine)
        blocks = whole.split([tensor.numel() for tensor in padded], dim=1)
        parts = [block.unflatten(1, tensor.shape) for block, tensor in zip(blocks, padded, strict=True)]
        return [
            torch.cat([part[:fuller].flatten(0, 1), part[fuller:, : (most - 1) * n].flatten(0, 1)])
            for part, n in zip(parts, copies, strict=True)
        ]

    @torch.no_grad()
    def sent_(self, tensors: Sequence[Tensor], source: int) -> None:
        """Make tensors what they are in rank ``source``; one broadcast of them all, in place."""
        if self.world > 1 and tensors:
            flat = packed(tensors)
            distributed.broadcast(flat, source)
            unpack(flat, tensors)

    @contextmanager
    def drawing(self, what: str, turn: int) -> Iterator[None]:
        """Draw from a generator of this rank's own, another for each purpose and turn; the common one does not move."""
        if self.world == 1:
            yield
            return
        name = f"{torch.initial_seed()} {self.rank} {what} {turn}"
        seed = int.from_bytes(sha256(name.encode()).digest()[:7])
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            torch.manual_seed(seed)
            yield


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """O(n): their numbers, one after the other."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unpacked(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of packed tensors of these shapes."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def unpack(flat: Tensor, into: Sequence[Tensor]) -> None:
    """O(n): bring packed numbers back to their tensors, in place."""
    for tensor, part in zip(into, unpacked(flat, into), strict=True):
        tensor.copy_(part)
