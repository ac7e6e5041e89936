"""Timing of one cell: warm-up, interleaved blocks of step and limit, a stopping rule, traced phases."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from stepscale.bench.errors import DivergedError, TooSlowError
from stepscale.bench.machine.clock import Clock, timed
from stepscale.bench.machine.other_processes import OtherCpu, idle_cores
from stepscale.bench.notes import Notes
from stepscale.bench.records.headline import MIN_BLOCKS, estimate
from stepscale.bench.records.schema import Blocks, Counts, Memory, OnGpu, Timing
from stepscale.bench.timing.energy import energy_counter, joules
from stepscale.bench.timing.limit import Limit
from stepscale.bench.timing.operation_counts import Counter
from stepscale.bench.timing.phases import Phases, by_class, trace
from stepscale.bench.timing.profiler import busy_seconds, operations
from stepscale.bench.timing.workload import Snapshot, Workload
from stepscale.optimizers import no_mark

STEADY = 0.02  # warm when the medians of two successive triples of blocks differ by less
MIN_PERIODS = 3  # of warm-up
TRACED = 10  # steps traced, where a period is shorter and they take no longer than the blocks may
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # torch.compile's modes
WALKED = 3  # the dear step and two more: the one right after it finds cold caches, and would look slow on its own
FEWEST = 3  # blocks, and traced steps, however long they take


class Block(NamedTuple):
    """Steps timed together."""

    steps: int
    step_s: float
    wall_s: float


class Measured(NamedTuple):
    """What timing a cell found."""

    timing: Timing
    counts: Counts
    memory: Memory


@dataclass(frozen=True)
class Settings:
    """How long and how closely to measure; the files in ``conf/timing/``."""

    precision: float  # stop when the 95 % interval of step / limit (or of the step) lies within ± this share of it
    time_limit_s: float  # or when the blocks have taken this long
    warmup_s: float
    block_s: float  # least length of a block of steps
    max_step_s: float  # a longer step makes the cell too_slow
    compile: str | None = None  # a mode of torch.compile; None runs the step as it is written
    profile: bool = False  # whether to list the step's operations, when all else has been measured

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("compile", "profile") and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"timing.{name} must be a positive number, got {value!r}")
        if not isinstance(self.profile, bool):
            raise ValueError(f"timing.profile must be true or false, got {self.profile!r}")
        if self.compile not in (None, *COMPILE):
            raise ValueError(f"timing.compile must be null or one of {', '.join(COMPILE)}, got {self.compile!r}")


def measure(
    workload: Workload,
    limit_of: Callable[[], Limit | None],
    clock: Clock,
    settings: Settings,
    peak_memory: Callable[[], Memory],
    notes: Notes,
) -> Measured:
    """Measure one cell; what is extra and fails leaves its reason in ``notes``.

    ``limit_of`` is called, and with it the limit's buffers exist, only once the peak memory has been taken.

    Raises:
        TooSlowError: a step took longer than ``settings.max_step_s``.
        DivergedError: the parameters were not finite after warm-up or after the last block.
    """
    began = time.perf_counter()
    if workload.compiled is not None:  # one period as written makes .grad and state: torch would compile anew for them
        workload.run(workload.period, no_mark)
    first_step_s = timed(clock, workload.run, 1)
    if first_step_s > settings.max_step_s:  # it may be compilation, the next a neighbour: the better of two more counts
        _refuse_slow(min(timed(clock, workload.run, 1) for _ in range(2)), settings)
    workload.run(-workload.position % workload.period)
    memory = peak_memory()
    try:
        boundary, limit = workload.snapshot(), limit_of()
    except (MemoryError, RuntimeError) as error:
        raise type(error)(f"the step itself ran ({memory}), what measuring it adds failed: {error}") from error
    counts, classes = count_period(workload, limit)
    step_s = _warm_up(workload, boundary, clock, settings)
    require_finite(workload, "warm-up")
    cell = _Cell(workload, limit, clock, settings, boundary, classes)
    timing = cell.measure(step_s, first_step_s, time.perf_counter() - began)
    cell.measure_extras(timing, notes)
    return Measured(timing, counts, memory)


@dataclass
class _Cell:
    """A warm workload and its limit, measured in turns, or alone where no limit is known."""

    workload: Workload
    limit: Limit | None  # which one need not know
    clock: Clock
    settings: Settings
    boundary: Snapshot  # at the start of a period
    classes: list[list[int]]  # positions of the period whose steps do the same work

    def measure(self, step_s: float, first_step_s: float, warmup_s: float) -> Timing:
        """Take headline blocks, unmarked wherever a period is short enough, then a trace of the phases."""
        period_s = self.workload.period * step_s
        composed = self.workload.period > 1 and period_s > self.settings.time_limit_s / 4
        traced: list[tuple[int, Phases]] = []
        if composed:
            blocks, stopped_by = self._interleave(lambda: self._walk(traced))
        else:
            steps = self._steps_in_a_block(step_s)
            blocks, stopped_by = self._interleave(lambda: self._block(steps))
        require_finite(self.workload, "the last block")
        if not composed:
            self.workload.restore(self.boundary)
            traced = trace(self.workload, self.clock, self.workload.whole_periods(self._traced_steps(step_s)))
        return Timing(
            first_step_s=first_step_s,
            warmup_s=warmup_s,
            composed=composed,
            stopped_by=stopped_by,
            blocks=blocks,
            trace=by_class(traced, self.classes, self.workload.period),
        )

    def measure_extras(self, timing: Timing, notes: Notes) -> None:
        """Add what only a GPU tells, and the profile where it is asked for; the timing itself is done."""
        step_s = float(np.median(timing.blocks.step_s))
        if self.workload.device.type == "cuda":
            timing.gpu = OnGpu()
            with notes.optional("energy"):  # before a profiler is there
                timing.gpu.energy_j = self._energy_j(self._steps_in_a_block(step_s))
            with notes.optional("busy time"):
                self.workload.restore(self.boundary)
                timing.gpu.busy_s = busy_seconds(self.workload, self._traced_steps(step_s), self.clock.synchronize)
        if self.settings.profile:
            with notes.optional("profile"):
                self.workload.restore(self.boundary)
                timing.profile = operations(self.workload, self._traced_steps(step_s), self.clock.synchronize)
        self.workload.restore(self.boundary)

    def _steps_in_a_block(self, step_s: float) -> int:
        return self.workload.whole_periods(self.settings.block_s / step_s)

    def _traced_steps(self, step_s: float) -> int:
        return min(TRACED, max(FEWEST, math.ceil(self.settings.time_limit_s / step_s)))

    def _energy_j(self, steps: int) -> float | None:
        """Joules a step, in blocks of ``steps``; None where there is no counter."""
        self.workload.restore(self.boundary)
        counter = energy_counter(self.workload.device)
        return None if counter is None else joules(self.workload, steps, counter, self.clock.synchronize)

    def _interleave(self, block: Callable[[], Block]) -> tuple[Blocks, str]:
        """Blocks of the step, each followed by one of the limit, until the ratio is precise or the time is up."""
        limit_runs, taken, judged = self._calibrate_limit(), Blocks([], [], [], [], []), 0
        others = OtherCpu(idle_cores(self.workload.device.type, torch.get_num_threads()))
        began = time.perf_counter()
        while True:
            append(taken, block(), self._limit_seconds(limit_runs))
            if (cores := others.cores()) is not None:
                taken.other_cores[judged:] = [cores] * (len(taken.steps) - judged)
                judged = len(taken.steps)
            if judged < len(taken.steps) and others.readable:
                continue
            if stopped_by := self._stopped_by(taken, time.perf_counter() - began):
                return taken, stopped_by

    def _stopped_by(self, taken: Blocks, spent_s: float) -> str | None:
        """Say what ends the blocks, if something does."""
        now, count = estimate(taken), len(taken.steps)
        if count >= MIN_BLOCKS and not now.contended and now.precision <= self.settings.precision:
            return "precision"
        return "time_limit" if count >= FEWEST and spent_s > self.settings.time_limit_s else None

    def _block(self, steps: int) -> Block:
        self.workload.restore(self.boundary)
        self.clock.synchronize()
        began = time.perf_counter()
        seconds = timed(self.clock, self.workload.run, steps)
        return Block(steps, seconds / steps, (time.perf_counter() - began) / steps)

    def _walk(self, traced: list[tuple[int, Phases]]) -> Block:
        """From the period's start as far as every class has been met once; each class weighted by its share."""
        self.workload.restore(self.boundary)
        self.clock.synchronize()
        began = time.perf_counter()
        met = max(positions[0] for positions in self.classes)
        steps = trace(self.workload, self.clock, min(self.workload.period, met + WALKED))
        wall_s = time.perf_counter() - began
        traced += steps
        classes = by_class(steps, self.classes, self.workload.period)
        return Block(len(steps), sum(sum(c.phases_s.values()) * c.share for c in classes), wall_s / len(steps))

    def _calibrate_limit(self) -> int:
        """Runs of the limit that fill half a block."""
        if self.limit is None:
            return 0
        self._limit_seconds(3)
        return max(1, math.ceil(self.settings.block_s / 2 / max(self._limit_seconds(3) or 0.0, 1e-9)))

    def _limit_seconds(self, runs: int) -> float | None:
        if self.limit is None:
            return None
        self.clock.synchronize()
        return timed(self.clock, self.limit.run, runs) / runs


def append(blocks: Blocks, block: Block, limit_s: float | None) -> None:
    """Add a block of the step and one of the limit, if there is one; nobody knows yet what others used meanwhile."""
    blocks.steps.append(block.steps)
    blocks.step_s.append(block.step_s)
    blocks.wall_s.append(block.wall_s)
    if limit_s is not None:
        blocks.limit_s.append(limit_s)
    blocks.other_cores.append(None)


def count_period(workload: Workload, limit: Limit | None) -> tuple[Counts, list[list[int]]]:
    """Run one period and count its work: means a step, and the positions grouped by their FLOPs."""
    total, positions = Counter(), defaultdict(list)
    for position in range(workload.period):
        before = total.flops, total.operations
        with total:
            workload.run(1, no_mark)
        work = (total.flops - before[0], total.operations - before[1], position if total.uncounted else None)
        positions[work].append(position)
    counts = Counts(
        flops=total.flops / workload.period,
        operations=total.operations / workload.period,
        synchronisations=total.synchronisations / workload.period,
        uncounted=sorted(total.uncounted),
        limit_flops=limit.flops if limit else None,
    )
    return counts, list(positions.values())


def require_finite(workload: Workload, after: str) -> None:
    """Raise ``DivergedError`` where a parameter is not finite."""
    if not workload.finite():
        raise DivergedError(f"a parameter is not finite after {after}; lower the learning rate (optimizer.update.lr)")


def _refuse_slow(step_s: float, settings: Settings) -> None:
    if step_s > settings.max_step_s:
        hint = ", and the step may have been compiled anew: try timing.compile=null" if settings.compile else ""
        raise TooSlowError(f"a step took {step_s:.3g} s; timing.max_step_s is {settings.max_step_s:g}{hint}")


def _warm_up(workload: Workload, boundary: Snapshot, clock: Clock, settings: Settings) -> float:
    """Run until the medians of the last blocks stand still; return seconds a step."""
    began = time.perf_counter()
    steps, times, block = 2 * workload.period, list[float](), workload.period  # one period ran, another was counted
    while True:
        workload.restore(boundary)
        clock.synchronize()
        times.append(timed(clock, workload.run, block) / block)
        steps += block
        block = workload.whole_periods(settings.block_s / 4 / max(times[-1], 1e-9))
        spent = time.perf_counter() - began
        steady = len(times) >= 6 and abs(np.median(times[-3:]) / np.median(times[-6:-3]) - 1) < STEADY
        enough = steps >= MIN_PERIODS * workload.period and spent >= settings.warmup_s
        if enough and (steady or spent >= 3 * settings.warmup_s):
            return float(np.median(times[-3:]))
