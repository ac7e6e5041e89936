"""What a run tells while it goes on: a line a cell, and a cell's details."""

from __future__ import annotations

from math import isnan

from stepscale.bench.records import work
from stepscale.bench.records.headline import Estimate, estimate
from stepscale.bench.records.schema import CAVEATS, Counts, Operation, Record, Status, Timing, Trained
from stepscale.bench.records.tables import phases_ms

SHOWN = 7  # operations of a profile


def outcome(record: Record) -> str:
    """Say in a few words what became of a cell."""
    if record.status is not Status.OK:
        return f"{record.status}: {record.reason}"
    if record.training is not None:
        return _trained(record.training) + "".join(f", no {what}" for what in CAVEATS if what in record.notes)
    assert record.timing is not None
    found = estimate(record.timing.blocks)
    flag = " contended" if found.contended else ""
    ratio = "" if isnan(found.ratio) else f" {found.ratio:>7.2f} x limit"
    return f"{1e3 * found.step_s:>9.3f} ms{ratio} ±{100 * found.precision:.1f} %{flag}"


def _trained(training: Trained) -> str:
    """Say what a training run came to."""
    final = training.final
    assert final is not None
    held_out = "" if final.held_out_nats is None else f"held out {final.held_out_nats:.2f} {training.number.unit}, "
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
        title = f"{cell.optimizer}, dim {cell.dim}, batch {cell.batch}: {ended}"
        return "\n".join([title, *_data(record), *_notes(record)])
    assert record.timing is not None
    title = f"{cell.optimizer}, dim {cell.dim}, batch {cell.batch}, {cell.dtype} on {cell.device}"
    times = _times(record, record.timing, estimate(record.timing.blocks))
    return "\n".join([title, *times, *_data(record), *_notes(record)])


def _times(record: Record, timing: Timing, found: Estimate) -> list[str]:
    step_ms, counts, memory = 1e3 * found.step_s, record.counts, record.memory
    phases, classes = phases_ms(timing.trace, step_ms)
    period = sum(len(entry.positions) for entry in timing.trace)
    known = not isnan(found.ratio)
    ratio = f", {found.ratio:.3f} x limit [{found.ratio_low:.3f}, {found.ratio_high:.3f}]" if known else ""
    lines = [
        f"step    {step_ms:.4g} ms{ratio}",
        f"period  {period} steps: {min(classes):.4g} ms the cheapest, {max(classes):.4g} ms the dearest",
        "phases  " + ", ".join(f"{name} {ms:.4g} ms" for name, ms in phases.items()),
    ]
    if counts:
        rate = 1e-9 * counts.flops / found.step_s
        lines.append(f"counts  {counts.flops:.4g} FLOP, {counts.operations:g} operations, {rate:.4g} GFLOP/s")
        lines += _growth(counts, timing, record.cell.dim, found.step_s)
    if timing.graphs is not None:
        lines.append(f"compiled into {timing.graphs} graph{'s' * (timing.graphs != 1)}")
    if timing.profile:
        lines.append(_dearest(timing.profile))
    if memory and memory.peak_mib is not None:
        lines.append(f"memory  {memory.peak_mib:.4g} MiB at the peak")
    return lines


def _growth(counts: Counts, timing: Timing, dim: int, step_s: float) -> list[str]:
    """Say how the step's FLOPs grow at this dim, and which share of it is cubic; nothing where that is not known."""
    told = work.figures(counts, timing, dim, step_s)
    exponent, share, unknown = told.get("flop_exponent"), told.get("cubic_share"), told["uncounted"]
    if exponent is None:
        return []
    words = f"growth  FLOPs as d^{exponent:.2f} here; "
    if told["cubic_operations"] is None:
        words += "no cubic work" if unknown is None else "no cubic work that is known"
    else:
        words += f"cubic are {told['cubic_operations']}"
        words += f", {100 * share:.0f} % of the step" if isinstance(share, float) else ""
    return [words + (f"; not known of {unknown}" if unknown else "")]


def _data(record: Record) -> list[str]:
    """Say what is noted of the data: where from, and how a file was read."""
    return [f"data    {record.data_note}"] if record.data_note else []


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
