"""Timing of one cell: warm-up, turns with a block of step, limit and operations, a stopping rule, traced phases."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from stepscale.bench.errors import DivergedError, TooSlowError
from stepscale.bench.machine.clock import Clock, CpuClock, WallClock, name_of, timed, watched
from stepscale.bench.machine.other_processes import OtherCpu, idle_cores
from stepscale.bench.notes import Notes
from stepscale.bench.records.headline import MIN_BLOCKS, estimate
from stepscale.bench.records.operations import PeriodLog
from stepscale.bench.records.schema import Blocks, Counts, Memory, OnGpu, Timing, Traced
from stepscale.bench.timing.energy import energy_counter, joules
from stepscale.bench.timing.limit import Limit
from stepscale.bench.timing.log_period import classes_of, counts_of
from stepscale.bench.timing.operation_times import OperationTimes
from stepscale.bench.timing.phases import Phases, by_class, trace
from stepscale.bench.timing.profiler import busy_seconds, operations
from stepscale.bench.timing.workload import Snapshot, Workload
from stepscale.optimizers import no_mark

STEADY = 0.02  # warm when the medians of two successive triples of blocks differ by less
MIN_PERIODS = 3  # of warm-up
TRACED = 10  # steps traced, where a period is shorter and they take no longer than a share of what the blocks may
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # torch.compile's modes
WALKED = 3  # the dear step and two more: the one right after it finds cold caches, and would look slow on its own
FEWEST = 3  # blocks, and traced steps, however long they take
BESIDE = 0.25  # of the time of the blocks: no more goes into steps timed by operation, or by phase, beyond the fewest


class Block(NamedTuple):
    """Steps timed together."""

    steps: int
    step_s: float
    wall_s: float


class Measured(NamedTuple):
    """What timing a cell found."""

    timing: Timing
    counts: Counts | None  # None where the step could not be logged
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
    log: PeriodLog | None = None,
    turn: Callable[[], None] = lambda: None,
) -> Measured:
    """Measure one cell; what is extra and fails leaves its reason in ``notes``.

    Args:
        workload: the step, with the model and the batches.
        limit_of: makes what the step is compared with, None where nothing is known. It is called, and with it the
            limit's buffers exist, only once the peak memory has been taken.
        clock: of the device; where the step turns out to wait, or to use several cores, CPU time is left for wall time.
        settings: how long and how closely.
        peak_memory: reads the peak up to now.
        notes: of what is extra and failed.
        log: the step's operations, logged in another process; without it the step is not counted.
        turn: is called before each block, and returns when the machine is this cell's.

    Raises:
        TooSlowError: a step took longer than ``settings.max_step_s``.
        DivergedError: the parameters were not finite after warm-up or after the last block.
    """
    began = time.perf_counter()
    workload.period = log.period if log else workload.period
    if workload.compiled is not None:  # one period as written makes .grad and state: torch would compile anew for them
        workload.run(workload.period, no_mark)
    first_step_s = _wall_seconds(clock, workload, 1)
    if first_step_s > settings.max_step_s:  # it may be compilation, the next a neighbour: the better of two more counts
        _refuse_slow(min(_wall_seconds(clock, workload, 1) for _ in range(2)), settings)
    workload.run(-workload.position % workload.period)
    settled = log.settled if log else workload.facts.settled
    workload.run(max(0, settled - workload.position))  # an update may warm up, a direction invert more often at first
    memory = peak_memory()
    try:
        boundary, limit = workload.snapshot(), limit_of()
    except (MemoryError, RuntimeError) as error:
        raise type(error)(f"the step itself ran ({memory}), what measuring it adds failed: {error}") from error
    step_s = _warm_up(workload, boundary, clock, settings)
    require_finite(workload, "warm-up")
    clock = _settled(clock, workload, boundary, settings, step_s)
    counts = None if log is None else counts_of(log, limit.flops if limit else None)
    cell = _Cell(workload, limit, clock, settings, boundary, notes, turn, log)
    timing = cell.measure(step_s, first_step_s, time.perf_counter() - began)
    cell.measure_extras(timing, notes)
    return Measured(timing, counts, memory)


class _Cell:
    """A warm workload and its limit, measured in turns."""

    def __init__(
        self,
        workload: Workload,
        limit: Limit | None,
        clock: Clock,
        settings: Settings,
        boundary: Snapshot,  # at the start of a period
        notes: Notes,
        turn: Callable[[], None],
        log: PeriodLog | None,
    ) -> None:
        self.workload, self.limit, self.clock, self.settings = workload, limit, clock, settings
        self.boundary, self.notes, self.turn = boundary, notes, turn
        self.repeats = log is None or log.regular
        positions = [[position] for position in range(workload.period)]  # of what is not logged no two are alike
        self.classes = classes_of(log) if log and log.regular else positions
        self.operations: OperationTimes | None = None
        if log is not None and log.regular:
            with notes.optional("shares"):
                self.operations = OperationTimes(workload, log, clock, self.classes)

    def measure(self, step_s: float, first_step_s: float, warmup_s: float) -> Timing:
        """Take headline blocks, unmarked wherever a period is short enough, then a trace of the phases."""
        period_s = self.workload.period * step_s
        composed = self.repeats and self.workload.period > 1 and period_s > self.settings.time_limit_s / 4
        walked: list[tuple[int, Phases]] = []
        steps = self._walk_length() if composed else self._steps_in_a_block(step_s)
        block = (lambda: self._walk(steps, walked)) if composed else (lambda: self._block(steps, step_s))
        blocks, stopped_by = self._take_turns(block, steps)
        require_finite(self.workload, "the last block")
        if not composed:
            self._restore()
            walked = trace(self.workload, self.clock, self.workload.whole_periods(self._traced_steps(step_s)))
        return Timing(
            first_step_s=first_step_s,
            warmup_s=warmup_s,
            composed=composed,
            stopped_by=stopped_by,
            blocks=blocks,
            trace=by_class(walked, self.classes, self.workload.period),
            clock=name_of(self.clock),
            repeats=self.repeats,
            graphs=self.workload.graphs,
            traced=self.operations.found() if self.operations and self.operations.on_host else None,
        )

    def measure_extras(self, timing: Timing, notes: Notes) -> None:
        """Add what only a GPU tells, and the profile where it is asked for; the timing itself is done."""
        step_s = float(np.median(timing.blocks.step_s))
        if self.workload.device.type == "cuda":
            timing.gpu = OnGpu()
            with notes.optional("energy"):
                timing.gpu.energy_j = self._energy_j(self._steps_in_a_block(step_s))
            timing.traced = self._time_kernels(timing)
            with notes.optional("busy time"):
                self._restore()
                timing.gpu.busy_s = busy_seconds(self.workload, self._traced_steps(step_s), self.clock.synchronize)
        if self.settings.profile:
            with notes.optional("profile"):
                self._restore()
                timing.profile = operations(self.workload, self._traced_steps(step_s), self.clock.synchronize)
        self._restore()

    def _restore(self) -> None:
        """Put the workload back, unless its work does not repeat: then it goes on through its state."""
        if self.repeats:
            self.workload.restore(self.boundary)

    def _steps_in_a_block(self, step_s: float) -> int:
        return self.workload.whole_periods(self.settings.block_s / step_s)

    def _walk_length(self) -> int:
        """Steps from the period's start as far as every class has been met once, and a few more."""
        met = max(positions[0] for positions in self.classes)
        return min(self.workload.period, met + WALKED)

    def _traced_steps(self, step_s: float) -> int:
        return min(TRACED, max(FEWEST, math.ceil(BESIDE * self.settings.time_limit_s / step_s)))

    def _energy_j(self, steps: int) -> float | None:
        """Joules a step, in blocks of ``steps``; None where there is no counter."""
        self._restore()
        counter = energy_counter(self.workload.device)
        return None if counter is None else joules(self.workload, steps, counter, self.clock.synchronize)

    def _take_turns(self, block: Callable[[], Block], steps: int) -> tuple[Blocks, str]:
        """A block of the step a turn, with one of the limit and some timed by operation, until they say enough."""
        limit_runs, taken, judged = self._calibrate_limit(), Blocks([], [], [], [], []), 0
        self._time_operations(steps, None)  # what the first such block does beside timing is no later one's
        others = OtherCpu(idle_cores(self.workload.device.type, torch.get_num_threads()))
        blocks_s = operations_s = 0.0
        disturbed = others.readable and not isinstance(self.clock, CpuClock)  # which others' work leaves as it is
        while True:
            others.pause()
            self.turn()
            others.resume()
            began = time.perf_counter()
            append(taken, block(), self._limit_seconds(limit_runs))
            blocks_s += (between := time.perf_counter()) - began
            if len(taken.steps) <= FEWEST or operations_s < BESIDE * blocks_s:
                self._time_operations(steps, len(taken.steps) - 1)
                operations_s += time.perf_counter() - between
            if disturbed and (cores := others.cores()) is not None:
                taken.other_cores[judged:] = [cores] * (len(taken.steps) - judged)
                judged = len(taken.steps)
            if disturbed and judged < len(taken.steps):
                continue
            if stopped_by := self._stopped_by(taken, blocks_s + operations_s):
                return taken, stopped_by

    def _stopped_by(self, taken: Blocks, spent_s: float) -> str | None:
        """Say what ends the blocks, if something does."""
        now, count = estimate(taken), len(taken.steps)
        if count >= MIN_BLOCKS and not now.contended and now.precision <= self.settings.precision:
            return "precision"
        return "time_limit" if count >= FEWEST and spent_s > self.settings.time_limit_s else None

    def _block(self, steps: int, step_s: float) -> Block:
        self._restore()
        period = self.workload.period
        if period * step_s < self.settings.block_s / 4:  # caches are cold after another's turn
            self.workload.run(period)
        self.clock.synchronize()
        began = time.perf_counter()
        seconds = timed(self.clock, self.workload.run, steps)
        return Block(steps, seconds / steps, (time.perf_counter() - began) / steps)

    def _walk(self, steps: int, walked: list[tuple[int, Phases]]) -> Block:
        """So many steps from the period's start; each class weighted by its share."""
        self._restore()
        self.clock.synchronize()
        began = time.perf_counter()
        seen = trace(self.workload, self.clock, steps)
        wall_s = time.perf_counter() - began
        walked += seen
        classes = by_class(seen, self.classes, self.workload.period)
        return Block(len(seen), sum(sum(c.phases_s.values()) * c.share for c in classes), wall_s / len(seen))

    def _time_operations(self, steps: int, block: int | None) -> None:
        """Run half a block whose operations are timed one by one by the host; after a failure there are no shares."""
        timer = self.operations
        if timer is None or not timer.on_host:
            return
        self.operations = None
        with self.notes.optional("shares"):
            self._restore()
            whole = steps % self.workload.period == 0  # else a walk, which meets every class once
            timer.run(self.workload.whole_periods(steps / 2) if whole else steps, block)
            self.operations = timer

    def _time_kernels(self, timing: Timing) -> Traced | None:
        """Time the kernels of each operation, beside the last blocks; None where it cannot be.

        All else comes before: a profiler slows the host down for as long as the process lives.
        """
        timer, taken = self.operations, len(timing.blocks.steps)
        if timer is None:
            return None
        with self.notes.optional("shares"):
            for block in range(max(0, taken - FEWEST), taken):
                self._restore()
                timer.run(self._walk_length() if timing.composed else self.workload.period, block)
            return timer.found()
        return None

    def _calibrate_limit(self) -> int:
        """Runs of the limit that fill half a block."""
        self._limit_seconds(3)
        return max(1, math.ceil(self.settings.block_s / 2 / max(self._limit_seconds(3) or 0.0, 1e-9)))

    def _limit_seconds(self, runs: int) -> float | None:
        self.clock.synchronize()
        return None if self.limit is None else timed(self.clock, self.limit.run, runs) / runs


def append(blocks: Blocks, block: Block, limit_s: float | None) -> None:
    """Add a block of the step and one of the limit; nobody knows yet what others used meanwhile."""
    blocks.steps.append(block.steps)
    blocks.step_s.append(block.step_s)
    blocks.wall_s.append(block.wall_s)
    if limit_s is not None:
        blocks.limit_s.append(limit_s)
    blocks.other_cores.append(None)


def require_finite(workload: Workload, after: str) -> None:
    """Raise ``DivergedError`` where a parameter is not finite."""
    if not workload.finite():
        raise DivergedError(f"a parameter is not finite after {after}; lower the learning rate (optimizer.update.lr)")


def _refuse_slow(step_s: float, settings: Settings) -> None:
    if step_s > settings.max_step_s:
        hint = ", and the step may have been compiled anew: try timing.compile=null" if settings.compile else ""
        raise TooSlowError(f"a step took {step_s:.3g} s; timing.max_step_s is {settings.max_step_s:g}{hint}")


def _wall_seconds(clock: Clock, workload: Workload, steps: int) -> float:
    """Seconds of so many steps by the wall clock, by which a user waits; nothing given to the device before counts."""
    clock.synchronize()
    began = time.perf_counter()
    workload.run(steps)
    clock.synchronize()
    return time.perf_counter() - began


def _warm_up(workload: Workload, boundary: Snapshot, clock: Clock, settings: Settings) -> float:
    """Run until the medians of the last blocks stand still; return seconds a step, by the wall clock."""
    began = time.perf_counter()
    steps, times, block = workload.period, list[float](), workload.period  # one period ran
    while True:
        workload.restore(boundary)
        times.append(_wall_seconds(clock, workload, block) / block)
        steps += block
        block = workload.whole_periods(settings.block_s / 4 / max(times[-1], 1e-9))
        spent = time.perf_counter() - began
        steady = len(times) >= 6 and abs(np.median(times[-3:]) / np.median(times[-6:-3]) - 1) < STEADY
        enough = steady and steps >= MIN_PERIODS * workload.period and spent >= settings.warmup_s
        if enough or spent >= 3 * settings.warmup_s:
            return float(np.median(times[-3:]))


def _settled(clock: Clock, workload: Workload, boundary: Snapshot, settings: Settings, step_s: float) -> Clock:
    """Return the clock that says how long the step takes: wall time where it waits, or uses more than one core."""
    if not isinstance(clock, CpuClock):
        return clock
    steps = workload.whole_periods(settings.block_s / step_s)
    if steps * step_s > settings.time_limit_s:  # of a long period what can be watched
        steps = max(1, math.ceil(settings.time_limit_s / step_s))
    for _ in range(2):  # by chance it may look so once, beside a neighbour
        workload.restore(boundary)
        if watched(workload.run, steps).suit_cpu_time(steps / workload.period):
            return clock
    return WallClock()
