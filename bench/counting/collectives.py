"""What ranks send each other, counted in one process: by torch's fake process group, which sends nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, distributed
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepscale.bench.errors import UsageError

KINDS = {"allreduce_": "all_reduce", "allgather_": "all_gather", "broadcast_": "broadcast"}  # as users call them


class Collective(NamedTuple):
    """One call that all ranks take part in."""

    kind: str
    bytes: int  # of what it fills in each rank: all that is summed, gathered or sent


class CollectiveLog(TorchDispatchMode):
    """While active, logs every collective of ``torch.distributed``."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            filled = [leaf.nbytes for leaf in tree_leaves(args[:1]) if isinstance(leaf, Tensor)]
            self.collectives.append(Collective(KINDS.get(name, name.strip("_")), sum(filled)))
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_ranks(rank: int, world: int) -> Iterator[None]:
    """Have this process be one rank of many that are not there: collectives return at once, numbers as they were.

    Raises:
        UsageError: this torch has no fake process group.
    """
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise UsageError(
            f"this torch has no fake process group, by which ranks are counted ({error}): install torch 2.13"
        ) from error
    distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()
