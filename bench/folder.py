"""A run's folder: which cells it holds, which need no measuring, and how far it is."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from stepscale.bench import environment, interrupt, process, records, tables
from stepscale.bench.job import Job

SHOWN = 7  # operations of a profile

_opened: dict[Path, Run] = {}


class Run:
    """The cells of one sweep, in ``path/records``; opened again, it goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.planned: int | None = None  # cells, where a sweep has said so
        self.multirun = False
        self.seen, self.measured, self.spent_s = 0, 0, 0.0
        there, complaints = records.read_all(path)
        for complaint in complaints:
            print(complaint, file=sys.stderr)
        self.rows = {record["identity"]: tables.row(record) for record in there}

    def measure(self, job: Job) -> records.Record:
        """Return the cell's record: the one that is there, or a new one, measured or predicted to be too slow.

        A damaged record counts as not there, and is replaced; so is one that failed, whose cause may be mended.
        """
        interrupt.check()
        self.seen += 1
        there = self.rows.get(job.identity, {"status": "failed"})
        if there["status"] != "failed" and not job.checkpoint.exists():
            return records.read(self.path / "records" / f"{job.identity}.json")
        began = time.perf_counter()
        record = self._predicted_too_slow(job) or process.run(job)
        self.spent_s += time.perf_counter() - began
        self.measured += 1
        self.rows[job.identity] = tables.row(record)
        print(self._line(self.rows[job.identity]), flush=True)
        return record

    def _predicted_too_slow(self, job: Job) -> records.Record | None:
        """Record a cell as too slow where smaller dims' times and the growth of their FLOPs say so."""
        if job.config["task"] != "time":
            return None
        reason = predict_too_slow(job.cell, list(self.rows.values()), job.config["timing"]["max_step_s"])
        if reason is None:
            return None
        record = job.record("too_slow", reason, environment={"code": environment.code_hash()})
        records.save(record, self.path / "records")
        return record

    def _line(self, row: dict[str, Any]) -> str:
        count = f"[{self.seen}/{self.planned}]" if self.planned else f"[{self.seen}]"
        place = f"{count:>9} dim {row['dim']:>5} batch {row['batch']:>4} seed {row['seed']}  {row['optimizer']:<18}"
        if row["status"] != "ok":
            return f"{place} {row['status']}: {row['reason']}{self._left()}"
        if row["task"] == "train":
            return f"{place} {_trained(row)}{self._left()}"
        spread = 50 * (row["ratio_high"] - row["ratio_low"]) / row["ratio"]
        flag = " contended" if row["contended"] else ""
        return f"{place} {row['step_ms']:>9.3f} ms {row['ratio']:>7.2f} x limit ±{spread:.1f} %{flag}{self._left()}"

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


def predict_too_slow(cell: dict[str, Any], rows: list[dict[str, Any]], max_step_s: float) -> str | None:
    """Say why a step of the cell would take longer than allowed, or None.

    The time at the largest smaller dim is extrapolated by the growth of the FLOPs between the two largest.
    """
    rows = [row for row in rows if row["task"] == "time"]
    like = [row for row in rows if all(row[axis] == cell[axis] for axis in (*records.GROUP, "optimizer"))]
    smaller = sorted((row for row in like if row["dim"] < cell["dim"]), key=lambda row: row["dim"])
    if smaller and smaller[-1]["status"] == "too_slow":
        return f"it is so already at dim {smaller[-1]['dim']}: {smaller[-1]['reason']}"
    quiet = [row for row in smaller if row["status"] == "ok" and row["flops"] and not row["contended"]]
    timed = list({row["dim"]: row for row in quiet}.values())
    if len(timed) < 2:
        return None
    first, last = timed[-2:]
    order = math.log(last["flops"] / first["flops"]) / math.log(last["dim"] / first["dim"])
    predicted = 1e-3 * last["step_ms"] * (cell["dim"] / last["dim"]) ** order
    if predicted <= max_step_s:
        return None
    return f"predicted from dim {last['dim']}: {predicted:.3g} s a step; timing.max_step_s is {max_step_s:g}"


def _trained(row: dict[str, Any]) -> str:
    """Say what a training run came to."""
    held_out = "" if row["held_out_nats"] is None else f"held out {row['held_out_nats']:.2f} nats, "
    flag = " contended" if row["contended"] else ""
    return f"{held_out}validation {row['validation_nats']:.2f}; {row['steps']} steps in {row['seconds']:.1f} s{flag}"


def details(record: records.Record) -> str:
    """Say in a few lines what was measured of one cell."""
    row = tables.row(record)
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    if row["task"] == "train":
        return f"{row['optimizer']}, dim {row['dim']}, batch {row['batch']}: {_trained(row)}, by {row['stopped_by']}"
    interval = f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
    lines = [
        f"{row['optimizer']}, dim {row['dim']}, batch {row['batch']}, {row['dtype']} on {row['device']}",
        f"step    {row['step_ms']:.4g} ms, {row['ratio']:.3f} x limit {interval}",
        f"period  {row['period']} steps: {row['cheap_ms']:.4g} ms the cheapest, {row['peak_ms']:.4g} ms the dearest",
        "phases  " + ", ".join(f"{name} {ms:.4g} ms" for name, ms in row["phases_ms"].items()),
        f"counts  {row['flops']:.4g} FLOP, {row['operations']:g} operations, {row['gflop_per_s']:.4g} GFLOP/s",
    ]
    if row["profile"]:
        lines.append(_dearest(row["profile"]))
    if row["peak_mib"] is not None:
        lines.append(f"memory  {row['peak_mib']:.4g} MiB at the peak")
    return "\n".join(lines)


def _dearest(profile: list[dict[str, Any]]) -> str:
    """Say which operations take most of the device's time, or of the host's where that is the device."""
    where = "host" if profile[0]["device_share"] is None else "device"
    first = sorted(profile, key=lambda entry: -entry[f"{where}_share"])[:SHOWN]
    named = ", ".join(f"{entry['operation']} {100 * entry[f'{where}_share']:.0f} %" for entry in first)
    return f"{where:<8}{named}"
