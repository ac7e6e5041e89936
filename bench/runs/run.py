"""A run's folder: which cells it holds, which need no measuring, and how far it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.machine import description
from stepscale.bench.records import store
from stepscale.bench.records.schema import Record, Status, Task
from stepscale.bench.runs.prediction import predict_too_slow
from stepscale.bench.runs.progress import _outcome

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
        record = job.record(Status.TOO_SLOW, reason, description.bare())
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
