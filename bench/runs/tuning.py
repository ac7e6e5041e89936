"""Fair tuning: as many trials for every optimizer, chosen by a validation split, and then the runs that count.

A trial is a training run with ``training.trial=true``: it never reads a held-out row. Factors to the learning rate and
the damping that an optimizer's own file gives span a log grid; each optimizer gets the grid of what it has, and all
grids have the same number of points.

A rate that is best at first may diverge later. So the trials of the grid are short, and the ``FINALISTS`` best of them
are tried for as long as a final run; where none of these comes to its end, the next best. This is successive halving
(Jamieson & Talwalkar 2016, arXiv 1502.07943) with two rungs, the last of the full length. What a final run comes to
chooses nothing: should one diverge, it counts as that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from stepscale.bench.config import Words, compose_cell, expand, quoted
from stepscale.bench.errors import UsageError
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Record, Status, Tuning

FINALISTS = 2  # of an optimizer's short trials, tried for as long as a final run
TRIAL = ("training.trial=true", "training.pictures=0", "training.curvature=0")
# takes cells, whether they are final runs, and what choosing their settings took; gives records, and what could not be
Measure = Callable[[list[Words], bool, Tuning | None], tuple[list[Record], list[str]]]


def trials(point: Words, factors: list[dict[str, list[float]]]) -> list[Words] | None:
    """Return the words of each trial that tunes one optimizer on one workload; None where it has nothing to tune.

    What has one name shares a factor, as the rates of an optimizer for matrices and of that for the rest.

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
    order = dict.fromkeys(key.split(".")[-1] for key in defaults)
    found = list[Words]()
    for chosen in itertools.product(*(grid[name] for name in order)):
        factor = dict(zip(order, chosen, strict=True))
        own = [f"optimizer.{key}={factor[key.split('.')[-1]] * value:.6g}" for key, value in defaults.items()]
        found.append([*point, *own, _label(cell.names["optimizer"]), *TRIAL])
    return found


def try_and_train(point: Words, short: list[Record], seeds: int, measure: Measure) -> list[str]:
    """Try the best of a point's trials for as long as a final run, then train it; return what could not be done.

    Where none of those that were tried comes to its end, the next best are tried, until one does.

    Args:
        point: the words of a workload and an optimizer.
        short: its short trials; none where it has nothing to tune.
        seeds: of the final runs.
        measure: gives the records of cells, by measuring them or by looking for them.
    """
    left, tried, faults = ranked(short), list[Record](), list[str]()
    while left and not ranked(tried):
        chosen, left = left[:FINALISTS], left[FINALISTS:]
        cells = [words for trial in chosen for words in expand(full_length(point, trial))]
        records, told = measure(cells, False, None)
        tried, faults = tried + records, faults + told
        if len(records) < len(cells):
            break
    best = next(iter(ranked(tried)), None)
    if short and best is None:
        return [*faults, f"no trial of {' '.join(point)} came to its end, so that nothing chose its settings"]
    known = {trial.identity for trial in short}  # a short trial that is as long as a final run is tried once
    taken = spent([*short, *(trial for trial in tried if trial.identity not in known)])
    return faults + measure(expand(finals(point, best, seeds)), True, taken)[1]


def full_length(point: Words, trial: Record) -> Words:
    """Return the words of a trial of the same settings that goes on for as long as a final run."""
    return [*_chosen(point, trial), *TRIAL, f"seed={trial.cell.seed}"]


def finals(point: Words, chosen: Record | None, seeds: int) -> Words:
    """Return the words of the runs that count: what the best trial chose, on seeds that no trial had."""
    return [*_chosen(point, chosen), f"seed={','.join(str(1 + k) for k in range(seeds))}"]


def _chosen(point: Words, trial: Record | None) -> Words:
    settings = tables.tuned(trial.config["optimizer"]) if trial else {}
    label = _label(compose_cell(point).names["optimizer"])
    return [*point, *(f"optimizer.{key}={value:.6g}" for key, value in settings.items()), label]


def ranked(trials: Iterable[Record]) -> list[Record]:
    """Return the trials that came to their end, the best on the validation split first."""
    return sorted((trial for trial in trials if trial.status is Status.OK), key=_validation_nats, reverse=True)


def spent(trials: Sequence[Record]) -> Tuning | None:
    """Return what trials have taken; None where there were none."""
    if not trials:
        return None
    done = [trial.training for trial in trials if trial.training is not None]
    ended = sum(trial.status is Status.OK for trial in trials)
    steps, seconds = sum(run.steps for run in done), math.fsum(run.seconds for run in done)
    return Tuning(trials=len(trials), ended=ended, steps=steps, seconds=seconds)


def _validation_nats(record: Record) -> float:
    assert record.training is not None and record.training.final is not None  # it came to its end
    return record.training.final.validation_nats


def _label(name: str) -> str:
    """Name the optimizer as its point does: a trial's settings are no other method."""
    return f"label={quoted(name)}"
