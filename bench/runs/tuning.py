"""Fair tuning: as many trials for every optimizer, chosen by a validation split, and then the runs that count.

A trial is a training run with ``training.trial=true``: it never reads a held-out row. Factors to the learning rate and
the damping that an optimizer's own file gives span a log grid; each optimizer gets the grid of what it has, and all
grids have the same number of points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from stepscale.bench.config import Words, compose_cell
from stepscale.bench.errors import UsageError
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Record, Status


def trials(point: Words, factors: list[dict[str, list[float]]]) -> Words | None:
    """Return the words of the trials that tune one optimizer on one workload; None where it has nothing to tune.

    Raises:
        UsageError: the grids differ in size, so that the budget would not be the same.
    """
    sizes = {math.prod(len(values) for values in grid.values()) for grid in factors}
    if len(sizes) > 1:
        raise UsageError(
            f"tuning.factors have grids of {sorted(sizes)} points: the same number for every optimizer is fair"
        )
    cell = compose_cell(point)
    defaults = tables.tuned(cell.config["optimizer"])
    names = {key.split(".")[-1] for key in defaults}
    grid = next((grid for grid in factors if set(grid) == names), None)
    if grid is None:
        return None
    swept = [
        f"optimizer.{key}=" + ",".join(f"{factor * value:.6g}" for factor in grid[key.split(".")[-1]])
        for key, value in defaults.items()
    ]
    return [*point, *swept, _label(cell.names["optimizer"]), "training.trial=true", "training.pictures=0"]


def finals(point: Words, chosen: Record | None, seeds: int) -> Words:
    """Return the words of the runs that count: what the best trial chose, on seeds that no trial had."""
    best_settings = tables.tuned(chosen.config["optimizer"]) if chosen else {}
    settings = [f"optimizer.{key}={value:.6g}" for key, value in best_settings.items()]
    label = _label(compose_cell(point).names["optimizer"])
    return [*point, *settings, label, f"seed={','.join(str(1 + k) for k in range(seeds))}"]


def best(trials: Iterable[Record]) -> Record | None:
    """Return the trial that came furthest on the validation split; None where none came to its end."""
    return max((trial for trial in trials if trial.status is Status.OK), key=_validation_nats, default=None)


def _validation_nats(record: Record) -> float:
    assert record.training is not None and record.training.final is not None  # it came to its end
    return record.training.final.validation_nats


def _label(name: str) -> str:
    """Name the optimizer as its point does: a trial's settings are no other method."""
    quoted = name.replace("'", "\\'")
    return f"label='{quoted}'"
