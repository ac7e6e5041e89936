"""The operations of a period of a step, and how the work of each grows: logged once, before anything is timed.

While it is logged, what ``torch.compile`` has compiled runs as it is written, and in that process ever after: a cell is
logged in a process of its own.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepscale.bench.counting.growth import exponents, second_dims
from stepscale.bench.counting.operation_counts import Logged, OperationLog, TypedProduct
from stepscale.bench.counting.period import WATCHED, repeats
from stepscale.bench.errors import TooSlowError
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import Kind, PeriodLog, inexact
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
    period = find_period(_somewhere(make, dim), notes)
    here = _logged(make(dim), period, max_step_s)
    found: list[float | None] = [None] * len(here.operations)
    second: tuple[int, float] | None = None
    for other_dim in second_dims(dim):
        with notes.optional("growth"):
            there = _logged(make(other_dim), period, max_step_s)
            tried = exponents(here.operations, there.operations, dim, other_dim)
            if second is None or _switches(tried) < _switches(found):
                found, second = tried, (other_dim, there.flops / len(there.lengths))
            if not _switches(tried):
                break
    log = _period_log(here, found, period)
    if second is not None:
        log.second_dim, log.second_flops = second
        notes.pop("growth", None)
    return log


def log_here(workload: Workload, notes: Notes) -> PeriodLog:
    """Log the workload's next period, nothing being known of how its work grows."""
    period = find_period(workload, notes)
    seen = _logged(workload, period, math.inf)
    return _period_log(seen, [None] * len(seen.operations), period)


def find_period(workload: Workload, notes: Notes) -> Found:
    """Return after how many steps the work repeats, and from which on.

    What the step declares is believed, where it speaks of its update too; any other step is watched, for ``WATCH_S`` at
    most.
    """
    declared = workload.facts.period
    if workload.facts.period_known:
        return Found(declared, workload.facts.settled, regular=True)
    seen, began, wanted = _Steps(), time.perf_counter(), max(WATCHED, 4 * declared)
    while len(seen.lengths) < wanted and (time.perf_counter() - began < WATCH_S or len(seen.lengths) < 4 * declared):
        _run(workload, 1, seen)
    if len(seen.lengths) < wanted:
        watched = f"its update was watched for {len(seen.lengths)} steps only, and may have a longer period"
        notes["period"] = f"{watched}; say which by optimizer.period"
    found = repeats(seen.works, declared)
    return Found(declared, 0, regular=False) if found is None else Found(*found, regular=True)


class Found(NamedTuple):
    """The period of a step, and how that is known."""

    steps: int
    settled: int  # steps before the work repeats
    regular: bool  # whether it does

    @property
    def start(self) -> int:
        """Steps before a period whose work repeats, whole periods: the first may make ``.grad`` and state."""
        return self.steps * max(1, math.ceil(self.settled / self.steps))


def _somewhere(make: Make, dim: int) -> Workload:
    """Build a small workload, or one of that dim where the model has no other."""
    try:
        return make(min(dim, SMALL))
    except Exception:
        return make(dim)


class _Steps:
    """What successive steps did."""

    def __init__(self) -> None:
        self.operations: list[Logged] = []
        self.lengths: list[int] = []
        self.works: list[tuple[int, float]] = []  # of each step: operations and FLOPs
        self.synchronisations = 0
        self.products: set[TypedProduct] = set()

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
        seen.products |= log.products


def _logged(workload: Workload, period: Found, max_step_s: float) -> _Steps:
    """Log a period of which the work repeats."""
    for _ in range(-workload.position % period.steps + period.start):
        began = time.perf_counter()
        workload.run(1, no_mark)
        if workload.position > 1 and time.perf_counter() - began > max_step_s:
            raise TooSlowError(f"a step took longer than timing.max_step_s={max_step_s:g}")
    seen = _Steps()
    _run(workload, period.steps if period.regular else max(period.steps, UNREPEATED), seen)
    return seen


def _switches(found: Sequence[float | None]) -> int:
    return sum(map(inexact, found))


def _period_log(seen: _Steps, exponents_: Sequence[float | None], period: Found) -> PeriodLog:
    kinds: dict[tuple[Logged, float | None], int] = {}
    sequence = []
    for operation, exponent in zip(seen.operations, exponents_, strict=True):
        rounded = None if exponent is None else round(exponent, 4)
        sequence.append(kinds.setdefault((operation, rounded), len(kinds)))
    return PeriodLog(
        period=period.steps,
        settled=period.start,
        regular=period.regular,
        lengths=seen.lengths,
        sequence=sequence,
        kinds=[_kind(operation, exponent) for operation, exponent in kinds],
        synchronisations=seen.synchronisations / len(seen.lengths),
        products=sorted(seen.products),
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
