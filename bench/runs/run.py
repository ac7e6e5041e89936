"""A run's folder: where it lies, which cells it holds, which need no measuring, and how far it is.

A plan's folder is named by its content, so that the same plan goes on where it stopped.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.errors import BadRecordError
from stepscale.bench.locks import measuring
from stepscale.bench.machine import description
from stepscale.bench.records import store
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import Record, Status, Task
from stepscale.bench.runs.prediction import predict_too_slow
from stepscale.bench.runs.progress import outcome

Tell = Callable[[str], None]
LATEST = "latest"


class Run:
    """The cells of one plan, in ``path/records``; opened again, it goes on where it stopped.

    Args:
        path: the folder; it is all the state there is.
        planned: how many cells the run is to have; None where nobody has said so.
        tell: is called with each line that there is to say.
        at_first: is called with the folder once it holds a record.
    """

    def __init__(
        self, path: Path, planned: int | None, tell: Tell, at_first: Callable[[Path], None] = lambda path: None
    ) -> None:
        self.path, self.planned, self.tell = path, planned, tell
        self.seen, self.measured, self.spent_s, self.counted_s = 0, 0, 0.0, 0.0
        self.wanted: set[str] = set()  # identities of the cells that were asked for
        self.logs: dict[str, StepLog] = {}  # by name
        there, self.complaints = store.read_all(path)
        for complaint in self.complaints:
            tell(complaint)
        self.records = {record.identity: record for record in there}
        self._at_first = at_first
        if self.records:
            at_first(path)

    def measure(self, jobs: Sequence[Job], *, anew: bool = False) -> list[Record]:
        """Return the cells' records: those that are there, or new ones, predicted to be too slow or measured in turns.

        A damaged record counts as not there, and is replaced; so is one that failed, whose cause may be mended, and one
        of a process that a signal ended.
        """
        interrupt.check()
        missing = []
        for job in jobs:
            self.wanted.add(job.identity)
            if anew:
                job.checkpoint.unlink(missing_ok=True)
            if not anew and self._there(job) is not None:
                self.seen += 1
                job.checkpoint.unlink(missing_ok=True)  # of one that was killed once its record was there
            elif anew or self.planned is None or (record := self._predicted_too_slow(job)) is None:
                missing.append(job)
            else:
                self._note(record)
        if missing:
            with measuring(missing[0].cell.device, f"measuring into {missing[0].folder}", self.tell):
                self.counted_s = time.perf_counter()  # without what was waited for the machine
                self._measure(missing)
                self._count_time()
        return [self.records[job.identity] for job in jobs]

    def _measure(self, jobs: Sequence[Job]) -> None:
        """Measure cells in turns; by itself one for which there was no room beside the others, or that was ended."""
        logged = self._logged(jobs)
        done = {record.identity for record in process.run(logged, self._note)}
        for job in logged:
            if job.identity not in done:
                process.run([job], self._note, again=True)

    def _note(self, record: Record) -> None:
        """Take a record in, and say what it says."""
        self.seen += 1
        self.measured += 1
        if self.measured == 1:
            self._at_first(self.path)
        self.records[record.identity] = record
        self.complaints = [complaint for complaint in self.complaints if record.identity not in complaint]
        if record.status is not Status.TOO_SLOW:
            self._count_time()
        self.tell(self._line(record))

    def _count_time(self) -> None:
        """Count the time since it was counted last, while cells are measured."""
        now = time.perf_counter()
        self.spent_s, self.counted_s = self.spent_s + now - self.counted_s, now

    def _logged(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs with the logs of their operations, which are made once for all seeds."""
        wanted = dict[str, Job]()
        for job in jobs:
            if job.task is not Task.TIME or job.log_name in self.logs:
                continue
            if (path := store.log_path(self.path, job.log_name)).exists():
                try:
                    self.logs[job.log_name] = store.read_log(path)
                    continue
                except BadRecordError as error:
                    self.tell(f"{error}; it is made anew")
            wanted[job.log_name] = job
        for name, found in zip(wanted, process.log(list(wanted.values())) if wanted else [], strict=True):
            self.logs[name] = found
            if found.period is not None:
                store.save_log(found, self.path, name)
        return [replace(job, log=self.logs[job.log_name]) if job.task is Task.TIME else job for job in jobs]

    def refresh(self) -> None:
        """Read what other processes have recorded in the folder meanwhile."""
        for path in sorted((self.path / store.RECORDS).glob("*.json")):
            if path.stem not in self.records:
                with suppress(BadRecordError):  # its complaint is known
                    self.records[path.stem] = store.read(path)

    def missing(self) -> set[str]:
        """Return the identities of the cells that were asked for and have no record on the disk."""
        return {identity for identity in self.wanted if not store.path_of(self.path, identity).exists()}

    def age_s(self) -> float | None:
        """Seconds since the last record was written; None where there is none."""
        times = [path.stat().st_mtime for path in (self.path / store.RECORDS).glob("*.json")]
        return time.time() - max(times) if times else None

    def _there(self, job: Job) -> Record | None:
        """Return the cell's record, if it need not be measured; another process may have left it since."""
        path = store.path_of(self.path, job.identity)
        if job.identity not in self.records and path.exists():
            try:
                self.records[job.identity] = store.read(path)
            except BadRecordError:
                return None
        there = self.records.get(job.identity)
        if there is None or not there.settled:
            return None
        unfinished = there.status not in process.ENDED and job.checkpoint.exists()
        return None if unfinished else there

    def _predicted_too_slow(self, job: Job) -> Record | None:
        """Record a cell as too slow where smaller dims' times and the growth of their FLOPs say so."""
        if job.task is not Task.TIME:
            return None
        reason = predict_too_slow(job, self.records.values())
        if reason is None:
            return None
        record = job.record(Status.TOO_SLOW, reason, description.bare())
        store.save(record, self.path)
        return record

    def _line(self, record: Record) -> str:
        cell = record.cell
        count = f"[{self.seen}/{self.planned}]" if self.planned else f"[{self.seen}]"
        place = f"{count:>9} dim {cell.dim:>5} batch {cell.batch:>4} seed {cell.seed}  {cell.optimizer:<18}"
        return f"{place} {outcome(record)}{self._left()}"

    def _left(self) -> str:
        if not self.planned:
            return ""
        seconds = round(self.spent_s / self.measured * max(0, self.planned - self.seen))
        return f"   {seconds // 60}:{seconds % 60:02d} left"


def folder_of(name: str, *, anew: bool = False) -> Path:
    """Return the folder of a plan's name: the newest there is of it, or ``anew`` a further one, ``NAME-2``."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    there = [
        match
        for path in store.LOCAL.glob(f"{glob.escape(name)}*")
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    ]
    newest = max((int(match[1] or 1) for match in there), default=0)
    number = max(1, newest + anew)
    return store.LOCAL / (name if number == 1 else f"{name}-{number}")


def point_latest_at(path: Path) -> None:
    """Have ``results/local/latest`` lead to a run; where links cannot be made, do without."""
    if path.parent != store.LOCAL:
        return
    partial = store.LOCAL / f"{LATEST}.{os.getpid()}.partial"
    with suppress(OSError):
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.name)
        os.replace(partial, store.LOCAL / LATEST)
