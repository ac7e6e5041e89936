"""One cell, one process, forked from the server; cells that are compared take turns."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import msgspec
import torch

from stepscale.bench.cells import descendants, fork_server
from stepscale.bench.cells.failures import wants_memory
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.measure import log_operations, measure_cell
from stepscale.bench.errors import BadRecordError, StoppedError
from stepscale.bench.machine import cores, description
from stepscale.bench.records import store
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import Record, Status, Task

TIMED_S = 600.0  # of timing where timeout_s is null; training has budgets of its own
GRACE_S = 5.0
TURN = True  # what a process says that wants one, and is told that has one
GONE = 255  # the status of a process whose server has ended before it could tell a status
NO_ROOM = False  # what one says for which the others leave too little memory, or no device
MOST = 8  # logs of a GPU's steps side by side
BUSY = "busy or unavailable"  # what a GPU says that takes one process at a time
ENDED = (Status.OK, Status.DIVERGED)  # of a training run: there is nothing left to take up
Answer = bytes | bool | None  # a record, a wish for a turn or no room; nothing


def run(
    jobs: Sequence[Job], tell: Callable[[Record], None] = lambda record: None, *, again: bool = False
) -> list[Record]:
    """Measure cells, each in a process of its own, which writes its record and returns it; they take turns.

    At any time one of them works. In a round each that is not done has one turn, in an order that is random: what
    drifts is the same for all. A process that dies or takes too long leaves a ``killed`` record; but one that dies
    beside others, finds no room there, is ended by a signal or with its server leaves none: the cause may lie outside
    of it, as where a scheduler ends all of a job, and ``again``, by itself, it may be measured yet.

    Args:
        jobs: cells that differ in their optimizer; all have the same number of threads.
        tell: is called with each record as it comes.
        again: whether these have been tried before, so that each leaves a record now.

    Raises:
        OSError: a record cannot be written.
        KeyboardInterrupt: the processes have been ended, and there is no record of those that were not done.
    """
    fork_server.start(jobs[0].cell.threads)
    name = uuid.uuid4().hex[:12] if len(jobs) > 1 else None
    sessions = list[Session]()
    try:
        for job in jobs:
            sessions.append(Session(replace(job, turns=name), again=again))
            sessions[-1].listen(tell)
        while waiting := [session for session in sessions if session.working]:
            for session in random.sample(waiting, len(waiting)):
                session.grant()
                session.listen(tell)
    finally:
        for session in sessions:
            session.end()
    return [session.record for session in sessions if session.record is not None]


class Session:
    """The process of one cell."""

    def __init__(self, job: Job, *, again: bool) -> None:
        self.job, self.again, self.working = job, again, True
        self.record: Record | None = None  # once it has one; of one that is to be tried again there is none
        self.path = store.path_of(job.folder, job.identity)
        self.before = _file_number(self.path)
        self.timeout_s = self.left_s = job.config["timeout_s"] or (TIMED_S if job.task is Task.TIME else None)
        self.process, self.connection = _start(_measure, job)
        _pin(self.process, job)

    def listen(self, tell: Callable[[Record], None]) -> None:
        """Hear what it says: that it wants a turn, or its record.

        Raises:
            OSError: its record cannot be written.
        """
        began = time.monotonic()
        told = multiprocessing.connection.wait([self.connection, self.process.sentinel], self.left_s)
        answer = _answer(self.connection)
        if self.left_s is not None:
            self.left_s = max(0.0, self.left_s - (time.monotonic() - began))
        if answer is TURN:
            return
        if told:
            self.process.join(GRACE_S)  # it has nothing left to do, unless a thread of the user's has
        else:
            self.process.terminate()  # a training run leaves its checkpoint; or it is about to answer all the same
            multiprocessing.connection.wait([self.connection, self.process.sentinel], GRACE_S)
            answer = _answer(self.connection)
        self.end()
        self.working = False
        if isinstance(answer, bytes):
            if _file_number(self.path) == self.before:  # it could not write it; perhaps no more than itself
                store.write(answer, self.path)
            self.record = store.decode(answer)
        else:
            self.record = self._without_answer(bool(told), answer)
        if self.record is not None:
            tell(self.record)

    def grant(self) -> None:
        """Give it its turn; should it be gone, ``listen`` finds out why."""
        with suppress(OSError):
            self.connection.send(TURN)

    def end(self) -> None:
        """End the process, if it still runs: a training run leaves its checkpoint."""
        _end(self.process)

    def _without_answer(self, died: bool, answer: Answer) -> Record | None:
        """Return the record of one that did not send any; None where it is to be tried again."""
        if _file_number(self.path) != self.before:  # it could not say any more what it had written
            with suppress(BadRecordError):
                return store.read(self.path)
        code = self.process.exitcode
        signalled = -code if died and code is not None and code < 0 else None
        ended = signalled is not None or (died and code == GONE)
        crowded = self.job.turns and died and answer in (None, NO_ROOM)  # or it died of the others' memory
        if crowded or (ended and not self.again):
            return None
        reason = _death(code) if died else f"took longer than timeout_s={self.timeout_s:g}"
        record = self.job.record(Status.KILLED, reason, description.bare())
        record.signal = signalled
        store.save(record, self.job.folder)
        return record


def log(jobs: Sequence[Job]) -> list[StepLog]:
    """Log the operations of cells' steps, each in a process of its own; what cannot be is noted.

    They have the same number of threads. No clock is read, so that as many work side by side as there are cores for;
    what did not find enough memory there is tried again by itself.
    """
    found, there = list[StepLog](), cores.available_cores()
    width = max(1, there // jobs[0].cell.threads) if jobs[0].cell.device == "cpu" else min(there, MOST)
    for first in range(0, len(jobs), width):
        together = jobs[first : first + width]
        for job, seen in zip(together, _logged(together), strict=True):
            alone = len(together) > 1 and any(map(wants_memory, seen.notes.values()))
            found += _logged([job]) if alone else [seen]
    return found


def _logged(jobs: Sequence[Job]) -> list[StepLog]:
    """Log the operations of cells' steps, all at the same time."""
    fork_server.start(jobs[0].cell.threads)
    started, processes = time.monotonic(), list[tuple[BaseProcess, Connection]]()
    try:
        for job in jobs:
            processes.append(_start(_log, job))
        timeouts = [float(job.config["timeout_s"] or TIMED_S) for job in jobs]
        return [_log_of(*process, timeout, started) for process, timeout in zip(processes, timeouts, strict=True)]
    finally:
        for process, _ in processes:
            _end(process)


def _log_of(process: BaseProcess, connection: Connection, timeout_s: float, started: float) -> StepLog:
    """Wait for a process's log, for so long since all were started."""
    left_s = max(0.0, started + timeout_s - time.monotonic())
    told = multiprocessing.connection.wait([connection, process.sentinel], left_s)
    answer = _answer(connection)
    if told:
        process.join(GRACE_S)
    if isinstance(answer, bytes):
        return msgspec.json.decode(answer, type=StepLog)
    reason = _death(process.exitcode) if told else f"took longer than timeout_s={timeout_s:g}"
    return StepLog(notes={"counts": reason})


def _start(target: Callable[[Job, Connection], None], job: Job) -> tuple[BaseProcess, Connection]:
    """Start a process of the server's that does something for a cell, and answers by the connection."""
    ours, theirs = multiprocessing.Pipe()
    arguments = (target, job, dict(os.environ) | fork_server.variables | job.variables, theirs)
    process = _forked(arguments)
    if process is None:  # a cell has ended the server, too shortly ago for that to be seen
        fork_server.stop()
        fork_server.start(job.cell.threads)
        process = _forked(arguments)
    theirs.close()
    if process is None:
        raise OSError("the server of the cells' processes ends as soon as it is started")
    return process, ours


def _forked(arguments: tuple[object, ...]) -> BaseProcess | None:
    """Have the server fork a process; None where there is no server."""
    process = multiprocessing.get_context("forkserver").Process(target=_child, args=arguments)
    with _no_main_module(), suppress(ConnectionError, EOFError):
        process.start()
        return process
    return None


def _pin(process: BaseProcess, job: Job) -> None:
    """Keep a timed step on the last cores: two cores of a shared machine can differ by a factor of two, for seconds."""
    if sys.platform == "linux" and job.task is Task.TIME and job.cell.device == "cpu" and process.pid is not None:
        with suppress(OSError):  # it may have ended
            os.sched_setaffinity(process.pid, cores.last(job.cell.threads))


def _answer(connection: Connection) -> Answer:
    """Return what has come; None of a process that is silent or gone."""
    try:
        answer: Answer = connection.recv() if connection.poll() else None
    except (EOFError, OSError):  # killed while it was sending, too
        return None
    return answer


def _end(process: BaseProcess) -> None:
    """End the process, if it still runs, and whatever else is of its group."""
    if process.is_alive():
        process.terminate()
        process.join(GRACE_S)
        process.kill()
    process.join()
    if process.pid is not None:
        with suppress(OSError):  # as a rule nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)


def _file_number(path: Path) -> int | None:
    """Return what tells a file from the one that was there before it; None where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode} and left no record"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # one without a name, as the real-time signals
        name = f"signal {-exitcode}"
    hint = ": by another process, or by the system for want of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the parent's main module, which a child would else import anew: a user's script, or a test runner."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(
    target: Callable[[Job, Connection], None], job: Job, variables: dict[str, str], connection: Connection
) -> None:
    os.environ.update(variables)  # of hydra.job.env_set too, which the server was started before
    descendants.lead()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    gc.freeze()  # what torch has loaded: a collection that walks through all of it takes as long as many steps
    torch.set_flush_denormal(job.config["flush_denormal"])  # before any thread is there: each inherits it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):  # of the connection: nobody hears it any more
        target(job, connection)
    descendants.end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # whatever a user's code has put there
            stream.flush()
    with suppress(Exception):
        multiprocessing.util._run_finalizers()  # type: ignore[attr-defined] # of the compiler's semaphores, or their tracker warns
    os._exit(0)  # or a thread that a user's code has left would be waited for


def _measure(job: Job, connection: Connection) -> None:
    """Measure a cell, with each turn that is granted; write its record and answer with it."""

    def turn() -> None:
        try:
            connection.send(TURN)
            connection.recv()
        except (EOFError, OSError):  # the parent is gone, and nobody waits for a record
            os._exit(1)

    try:
        record = measure_cell(job, turn)
    except StoppedError as error:
        sys.stderr.write(f"{error}\n")
        descendants.end()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # by what asked it to end, which is no status of its own
        return
    encoded, written = store.encode(record), False
    if job.turns and (record.status is Status.OUT_OF_MEMORY or BUSY in (record.reason or "")):
        connection.send(NO_ROOM)
        return
    with suppress(OSError):  # whoever reads the answer tries it too, and says why not
        store.write(encoded, store.path_of(job.folder, job.identity))
        written = True
    connection.send(encoded)
    if written and record.status in ENDED:  # one that failed may go on from there
        job.checkpoint.unlink(missing_ok=True)


def _log(job: Job, connection: Connection) -> None:
    """Log a cell's operations and answer with the log."""
    connection.send(msgspec.json.encode(log_operations(job)))


def _end_with_parent() -> None:
    """Wait, idle, for the parent's end: an orphan would go on measuring beside the run that takes its place."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        descendants.end()
        os._exit(1)
