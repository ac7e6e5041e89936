"""A run's folder: which cells it holds, which need no measuring, and how far it is."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from stepscale.bench import environment, interrupt, process, store
from stepscale.bench.estimate import Estimate, estimate
from stepscale.bench.job import Job
from stepscale.bench.schema import Cell, Machine, Operation, Record, Status, Task, Timing, Trained
from stepscale.bench.tables import phases_ms

SHOWN = 7  # operations of a profile

_opened: dict[Path, Run] = {}


class Run:
    """The cells of one sweep, in ``path/records``; opened again, it goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.planned: int | None = None  # cells, where a sweep has said so
        self.multirun = False
        self.seen, self.measured, self.spent_s = 0, 0, 0.0
        there, self.complaints = store.read_all(path)
        for complaint in self.complaints:
            print(complaint, file=sys.stderr)
        self.records = {record.identity: record for record in there}

    def measure(self, job: Job) -> Record:
        """Return the cell's record: the one that is there, or a new one, measured or predicted to be too slow.

        A damaged record counts as not there, and is replaced; so is one that failed, whose cause may be mended.
        """
        interrupt.check()
        self.seen += 1
        there = self.records.get(job.identity)
        if there is not None and there.status is not Status.FAILED and not job.checkpoint.exists():
            return there
        began = time.perf_counter()
        record = self._predicted_too_slow(job) or process.run(job)
        self.spent_s += time.perf_counter() - began
        self.measured += 1
        self.records[job.identity] = record
        print(self._line(record), flush=True)
        return record

    def _predicted_too_slow(self, job: Job) -> Record | None:
        """Record a cell as too slow where smaller dims' times and the growth of their FLOPs say so."""
        if job.task is not Task.TIME:
            return None
        max_step_s = job.config["timing"]["max_step_s"]
        reason = predict_too_slow(job.cell, job.machine, self.records.values(), max_step_s)
        if reason is None:
            return None
        record = job.record(Status.TOO_SLOW, reason, environment.bare())
        store.save(record, self.path)
        return record

    def _line(self, record: Record) -> str:
        cell = record.cell
        count = f"[{self.seen}/{self.planned}]" if self.planned else f"[{self.seen}]"
        place = f"{count:>9} dim {cell.dim:>5} batch {cell.batch:>4} seed {cell.seed}  {cell.optimizer:<18}"
        return f"{place} {_outcome(record)}{self._left()}"

    def _left(self) -> str:
        if not self.planned:
            return ""
        seconds = round(self.spent_s / self.measured * (self.planned - self.seen))
        return f"   {seconds // 60}:{seconds % 60:02d} left"


def open_run(path: Path) -> Run:
    """Return the run of a folder; one object for each folder in a process."""
    if path not in _opened:
        _opened[path] = Run(path)
    return _opened[path]


def opened() -> list[Run]:
    """Return the runs this process has opened."""
    return list(_opened.values())


def predict_too_slow(cell: Cell, machine: Machine, records: Iterable[Record], max_step_s: float) -> str | None:
    """Say why a step of the cell would take longer than allowed, or None.

    The time at the largest smaller dim is extrapolated by the growth of the FLOPs between the two largest.
    """
    like = [r for r in records if r.task is Task.TIME and r.machine.name == machine.name and _alike(r.cell, cell)]
    smaller = sorted((record for record in like if record.cell.dim < cell.dim), key=lambda record: record.cell.dim)
    if smaller and smaller[-1].status is Status.TOO_SLOW:
        return f"it is so already at dim {smaller[-1].cell.dim}: {smaller[-1].reason}"
    timed: dict[int, tuple[float, float]] = {}  # by dim: seconds a step and FLOPs
    for record in smaller:
        if record.timing and record.counts and record.counts.flops:
            now = estimate(record.timing.blocks)
            if not now.contended:
                timed[record.cell.dim] = now.step_s, record.counts.flops
    if len(timed) < 2:
        return None
    (first, (_, fewer)), (last, (step_s, flops)) = list(timed.items())[-2:]
    predicted = step_s * (cell.dim / last) ** (math.log(flops / fewer) / math.log(last / first))
    if predicted <= max_step_s:
        return None
    return f"predicted from dim {last}: {predicted:.3g} s a step; timing.max_step_s is {max_step_s:g}"


def _alike(one: Cell, other: Cell) -> bool:
    """Whether two cells are of one optimizer and differ in dim and seed alone."""
    return replace(one, dim=other.dim, seed=other.seed) == other


def _outcome(record: Record) -> str:
    """Say in a few words what became of a cell."""
    if record.status is not Status.OK:
        return f"{record.status}: {record.reason}"
    if record.training is not None:
        return _trained(record.training)
    assert record.timing is not None
    found = estimate(record.timing.blocks)
    flag = " contended" if found.contended else ""
    spread = 50 * (found.ratio_high - found.ratio_low) / found.ratio
    return f"{1e3 * found.step_s:>9.3f} ms {found.ratio:>7.2f} x limit ±{spread:.1f} %{flag}"


def _trained(training: Trained) -> str:
    """Say what a training run came to."""
    final = training.final
    assert final is not None
    held_out = "" if final.held_out_nats is None else f"held out {final.held_out_nats:.2f} nats, "
    flag = " contended" if training.contended else ""
    spent = f"{training.steps} steps in {training.seconds:.1f} s"
    return f"{held_out}validation {final.validation_nats:.2f}; {spent}{flag}"


def details(record: Record) -> str:
    """Say in a few lines what was measured of one cell."""
    cell = record.cell
    if record.status is not Status.OK:
        return f"{record.status}: {record.reason}"
    if record.training is not None:
        ended = f"{_trained(record.training)}, by {record.training.stopped_by}"
        return "\n".join([f"{cell.optimizer}, dim {cell.dim}, batch {cell.batch}: {ended}", *_notes(record)])
    assert record.timing is not None
    title = f"{cell.optimizer}, dim {cell.dim}, batch {cell.batch}, {cell.dtype} on {cell.device}"
    return "\n".join([title, *_times(record, record.timing, estimate(record.timing.blocks)), *_notes(record)])


def _times(record: Record, timing: Timing, found: Estimate) -> list[str]:
    step_ms, counts, memory = 1e3 * found.step_s, record.counts, record.memory
    phases, classes = phases_ms(timing.trace, step_ms)
    period = sum(len(entry.positions) for entry in timing.trace)
    lines = [
        f"step    {step_ms:.4g} ms, {found.ratio:.3f} x limit [{found.ratio_low:.3f}, {found.ratio_high:.3f}]",
        f"period  {period} steps: {min(classes):.4g} ms the cheapest, {max(classes):.4g} ms the dearest",
        "phases  " + ", ".join(f"{name} {ms:.4g} ms" for name, ms in phases.items()),
    ]
    if counts:
        rate = 1e-9 * counts.flops / found.step_s
        lines.append(f"counts  {counts.flops:.4g} FLOP, {counts.operations:g} operations, {rate:.4g} GFLOP/s")
    if timing.profile:
        lines.append(_dearest(timing.profile))
    if memory and memory.peak_mib is not None:
        lines.append(f"memory  {memory.peak_mib:.4g} MiB at the peak")
    return lines


def _notes(record: Record) -> list[str]:
    """Say what is not there, though nothing else was lost by it."""
    return [f"without {what}: {reason}" for what, reason in record.notes.items()]


def _dearest(profile: list[Operation]) -> str:
    """Say which operations take most of the device's time, or of the host's where that is the device."""
    where = "host" if profile[0].device_share is None else "device"
    shares = {entry.operation: _share(entry, where) for entry in profile}
    first = sorted(shares.items(), key=lambda item: -item[1])[:SHOWN]
    return f"{where:<8}" + ", ".join(f"{operation} {100 * share:.0f} %" for operation, share in first)


def _share(entry: Operation, where: str) -> float:
    return entry.host_share if where == "host" else entry.device_share or 0.0
