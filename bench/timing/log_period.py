"""The operations of a period of a step, and how the work of each grows: logged once, before anything is timed.

While it is logged, what ``torch.compile`` has compiled runs as it is written, and in that process ever after: a cell is
logged in a process of its own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from stepscale.bench.counting.growth import exponents, inexact, second_dims
from stepscale.bench.counting.operation_counts import Logged, OperationLog
from stepscale.bench.counting.period import WATCHED, repeats_after
from stepscale.bench.errors import TooSlowError
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import Kind, PeriodLog
from stepscale.bench.records.schema import Counts
from stepscale.bench.timing.workload import Workload
from stepscale.optimizers import no_mark

SMALL = 32  # the dim at which an update is watched: its period is the same at every dim
WATCH_S = 5.0
UNREPEATED = 16  # steps that are logged where the work does not repeat
Make = Callable[[int], Workload]


def log_growth(make: Make, dim: int, max_step_s: float, notes: Notes) -> PeriodLog:
    """Log a period of the workloads that ``make`` builds, at ``dim`` and at a second dim nearby.

    Where there is no second one, as of a data set with a fixed number of columns, ``notes`` says why, and how the work
    grows is not known.

    Raises:
        TooSlowError: a step took longer than ``max_step_s``.
    """
    period, regular = find_period(make, dim)
    here = _logged(make(dim), period, regular, max_step_s)
    found: list[float | None] = [None] * len(here.operations)
    second: tuple[int, float] | None = None
    for other_dim in second_dims(dim):
        with notes.optional("growth"):
            there = _logged(make(other_dim), period, regular, max_step_s)
            tried = exponents(here.operations, there.operations, dim, other_dim)
            if second is None or _switches(tried) < _switches(found):
                found, second = tried, (other_dim, there.flops / len(there.lengths))
            notes.pop("growth", None)
            if not _switches(tried):
                break
    log = _period_log(here, found, period, regular)
    if second is not None:
        log.second_dim, log.second_flops = second
    return log


def log_here(workload: Workload) -> PeriodLog:
    """Log the workload's next period, nothing being known of how its work grows."""
    seen = _Steps()
    _run(workload, workload.period, seen)
    return _period_log(seen, [None] * len(seen.operations), workload.period, regular=True)


def find_period(make: Make, dim: int) -> tuple[int, bool]:
    """Return after how many steps the work repeats, and whether it does.

    What the step declares is believed, where it speaks of its update too; any other step is watched.
    """
    try:
        workload = make(min(dim, SMALL))
    except Exception:  # of a model that has no other dim
        workload = make(dim)
    declared = workload.facts.period
    if workload.facts.period_known:
        return declared, True
    seen, began = _Steps(), time.perf_counter()
    while len(seen.lengths) < WATCHED and (time.perf_counter() - began < WATCH_S or len(seen.lengths) < 4 * declared):
        _run(workload, 1, seen)
    found = repeats_after(seen.works, declared)
    return (declared, False) if found is None else (found, True)


class _Steps:
    """What successive steps did."""

    def __init__(self) -> None:
        self.operations: list[Logged] = []
        self.lengths: list[int] = []
        self.works: list[tuple[int, float]] = []  # of each step: operations and FLOPs
        self.synchronisations = 0

    @property
    def flops(self) -> float:
        return sum(flops for _, flops in self.works)


def _run(workload: Workload, steps: int, seen: _Steps) -> None:
    for _ in range(steps):
        with OperationLog() as log:
            workload.run(1, no_mark)
        seen.operations += log.operations
        seen.lengths.append(len(log.operations))
        seen.works.append((len(log.operations), log.flops))
        seen.synchronisations += log.synchronisations


def _logged(workload: Workload, period: int, regular: bool, max_step_s: float) -> _Steps:
    """Log a period after the first, which may make ``.grad`` and state."""
    for _ in range(period):
        began = time.perf_counter()
        workload.run(1, no_mark)
        if workload.position > 1 and time.perf_counter() - began > max_step_s:
            raise TooSlowError(f"a step took longer than timing.max_step_s={max_step_s:g}")
    seen = _Steps()
    _run(workload, period if regular else max(period, UNREPEATED), seen)
    return seen


def _switches(found: Sequence[float | None]) -> int:
    return sum(map(inexact, found))


def _period_log(seen: _Steps, exponents_: Sequence[float | None], period: int, regular: bool) -> PeriodLog:
    kinds: dict[tuple[Logged, float | None], int] = {}
    sequence = []
    for operation, exponent in zip(seen.operations, exponents_, strict=True):
        rounded = None if exponent is None else round(exponent, 4)
        sequence.append(kinds.setdefault((operation, rounded), len(kinds)))
    return PeriodLog(
        period=period,
        regular=regular,
        lengths=seen.lengths,
        sequence=sequence,
        kinds=[_kind(operation, exponent) for operation, exponent in kinds],
        synchronisations=seen.synchronisations / len(seen.lengths),
    )


def _kind(operation: Logged, exponent: float | None) -> Kind:
    return Kind(
        name=operation.name,
        shapes=[list(shape) for shape in operation.shapes],
        flops=operation.flops,
        elements=operation.elements,
        exponent=exponent,
        uncounted=operation.uncounted,
    )


def counts_of(log: PeriodLog, limit_flops: float | None) -> Counts:
    """Return a step's work, the mean over the period."""
    steps, times = len(log.lengths), Counter(log.sequence)
    calls = [times[kind] / steps for kind in range(len(log.kinds))]
    return Counts(
        flops=sum((kind.flops or 0.0) * times[place] for place, kind in enumerate(log.kinds)) / steps,
        operations=len(log.sequence) / steps,
        synchronisations=log.synchronisations,
        uncounted=sorted({kind.name for kind in log.kinds if kind.uncounted}),
        limit_flops=limit_flops,
        kinds=log.kinds,
        calls=calls,
        second_dim=log.second_dim,
        second_flops=log.second_flops,
    )


def classes_of(log: PeriodLog) -> list[list[int]]:
    """Return the positions of the period grouped by their work; what is uncounted makes no two alike."""
    classes: dict[object, list[int]] = defaultdict(list)
    for position, kinds in enumerate(kinds_by_step(log)):
        flops = sum(log.kinds[kind].flops or 0.0 for kind in kinds)
        alone = position if any(log.kinds[kind].uncounted for kind in kinds) else None
        classes[len(kinds), flops, alone].append(position)
    return list(classes.values())


def kinds_by_step(log: PeriodLog) -> list[list[int]]:
    """Return the kinds of each step's operations, in their order."""
    found, start = [], 0
    for length in log.lengths:
        found.append(log.sequence[start : start + length])
        start += length
    return found
