"""Fair tuning: as many trials for every optimizer, chosen by a validation split, and then the runs that count.

A trial is a training run with ``training.trial=true``: it never reads a held-out row. Factors to the learning rate and
the damping that an optimizer's own file gives span a log grid; each optimizer gets the grid of what it has, and all
grids have the same number of points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec.structs import asdict

from stepscale.bench.config import Words, _composed, _label
from stepscale.bench.errors import UsageError
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Record, Status, Task


def trials(point: Words, factors: list[dict[str, list[float]]]) -> Words | None:
    """Return the multirun that tunes one optimizer on one workload; None where it has nothing to tune.

    Raises:
        UsageError: the grids differ in size, so that the budget would not be the same.
    """
    sizes = {math.prod(len(values) for values in grid.values()) for grid in factors}
    if len(sizes) > 1:
        raise UsageError(
            f"tuning.factors have grids of {sorted(sizes)} points: the same number for every optimizer is fair"
        )
    defaults = tables.tuned(_composed(point)["optimizer"])
    names = {key.split(".")[-1] for key in defaults}
    grid = next((grid for grid in factors if set(grid) == names), None)
    if grid is None:
        return None
    swept = [
        f"optimizer.{key}=" + ",".join(f"{factor * value:.6g}" for factor in grid[key.split(".")[-1]])
        for key, value in defaults.items()
    ]
    return [*point, *swept, f"label='{_label(point)}'", "training.trial=true", "training.pictures=0"]


def finals(point: Words, records: Iterable[Record], seeds: int) -> Words:
    """Return the multirun that counts: what the trials among ``records`` chose, on seeds that no trial had."""
    best = max(_trials_of(point, records), key=_validation_nats, default=None)
    chosen = tables.tuned(best.config["optimizer"]) if best else {}
    settings = [f"optimizer.{key}={value:.6g}" for key, value in chosen.items()]
    return [*point, *settings, f"label='{_label(point)}'", f"seed={','.join(str(1 + k) for k in range(seeds))}"]


def _validation_nats(record: Record) -> float:
    assert record.training is not None and record.training.final is not None  # it came to its end
    return record.training.final.validation_nats


def _trials_of(point: Words, records: Iterable[Record]) -> list[Record]:
    """Return the trials of one optimizer on one workload that came to their end."""
    config = _composed(point)
    facts = {axis: config[axis] for axis in ("dim", "batch", "depth", "dtype")}
    facts |= {group: _label(point, group) for group in ("optimizer", "model", "data")}
    done = [r for r in records if r.task is Task.TRAIN and r.config["training"]["trial"] and r.status is Status.OK]
    return [record for record in done if facts.items() <= asdict(record.cell).items()]
