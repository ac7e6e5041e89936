"""Published records as those of another machine, where one optimizer is faster than it was."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec.structs import replace

from stepscale.bench.records import store
from stepscale.bench.records.schema import Machine, Record, Task

RESULTS = Path(__file__).parents[2] / "results"
OTHER = Machine(cpu="Another CPU", cores=64)
PAIR = ("layerwise", "relative")
FASTER = 0.12  # of the time that layerwise takes on the other machine


def published(seeds: Iterable[int] = range(2), dims: Iterable[int] = (64, 256, 1024, 2048)) -> list[Record]:
    """Return some of the records of ``results/cpu-2-cores``: ``layerwise`` and ``relative``."""
    there = store.read_all(RESULTS / "cpu-2-cores")[0]
    cells = [record for record in there if record.task is Task.TIME and record.cell.optimizer in PAIR]
    return [record for record in cells if record.cell.dim in dims and record.cell.seed in seeds]


def elsewhere(records: Iterable[Record], first_seed: int = 0) -> Iterator[Record]:
    """Yield the records as those of another machine, whose ``layerwise`` takes ``FASTER`` as long."""
    for record in records:
        factor = FASTER if record.cell.optimizer == "layerwise" else 1.0
        yield replace(
            timed(record, factor),
            machine=OTHER,
            cell=replace(record.cell, seed=record.cell.seed + first_seed),
            identity=f"{int(record.identity, 16) ^ (1 + first_seed):016x}",
        )


def timed(record: Record, factor: float) -> Record:
    """Return a record whose step takes ``factor`` as long."""
    assert record.timing
    blocks = record.timing.blocks
    scaled = replace(blocks, step_s=[factor * seconds for seconds in blocks.step_s])
    return replace(record, timing=replace(record.timing, blocks=scaled))


def saved(records: Iterable[Record], folder: Path) -> Path:
    for record in records:
        store.save(record, folder)
    return folder
