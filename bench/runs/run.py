"""A run's folder: which cells it holds, which need no measuring, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.errors import BadRecordError
from stepscale.bench.machine import description
from stepscale.bench.records import store
from stepscale.bench.records.schema import Record, Status, Task
from stepscale.bench.runs.locks import measuring
from stepscale.bench.runs.prediction import predict_too_slow
from stepscale.bench.runs.progress import outcome

Tell = Callable[[str], None]


class Run:
    """The cells of one plan, in ``path/records``; opened again, it goes on where it stopped.

    Args:
        path: the folder; it is all the state there is.
        planned: how many cells the run is to have; None where nobody has said so.
        tell: is called with each line that there is to say.
    """

    def __init__(self, path: Path, planned: int | None, tell: Tell) -> None:
        self.path, self.planned, self.tell = path, planned, tell
        self.seen, self.measured, self.spent_s = 0, 0, 0.0
        self.wanted: set[str] = set()  # identities of the cells that were asked for
        there, self.complaints = store.read_all(path)
        for complaint in self.complaints:
            tell(complaint)
        self.records = {record.identity: record for record in there}

    def measure(self, job: Job, *, anew: bool = False) -> Record:
        """Return the cell's record: the one that is there, or a new one, measured or predicted to be too slow.

        A damaged record counts as not there, and is replaced; so is one that failed, whose cause may be mended.
        """
        interrupt.check()
        self.seen += 1
        self.wanted.add(job.identity)
        if not anew and (there := self._there(job)) is not None:
            return there
        if anew:
            job.checkpoint.unlink(missing_ok=True)
        record = None if anew or self.planned is None else self._predicted_too_slow(job)
        if record is None:
            with measuring(job, self.tell):
                began = time.perf_counter()  # without what was waited for the machine
                record = process.run(job)
                self.spent_s += time.perf_counter() - began
        self.measured += 1
        self.records[job.identity] = record
        self.complaints = [complaint for complaint in self.complaints if job.identity not in complaint]
        self.tell(self._line(record))
        return record

    def refresh(self) -> None:
        """Read what other processes have recorded in the folder meanwhile."""
        for path in sorted((self.path / store.RECORDS).glob("*.json")):
            if path.stem not in self.records:
                with suppress(BadRecordError):  # its complaint is known
                    self.records[path.stem] = store.read(path)

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
        again = there is None or there.status is Status.FAILED or job.checkpoint.exists()
        return None if again else there

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
