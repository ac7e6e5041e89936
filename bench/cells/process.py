"""One cell, one process, forked from the server."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType

from stepscale.bench.cells import fork_server
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.errors import StoppedError
from stepscale.bench.machine import description
from stepscale.bench.records import store
from stepscale.bench.records.schema import Record, Status, Task

TIMEOUTS_S = {Task.TIME: 600.0, Task.TRAIN: None}  # where timeout_s is null: training has budgets of its own
GRACE_S = 5.0


def run(job: Job) -> Record:
    """Measure a cell in a process of its own, which writes its record and returns it.

    A process that dies or takes too long leaves a ``killed`` record.

    Raises:
        OSError: the record cannot be written.
        KeyboardInterrupt: the process has been ended, and there is no record.
    """
    fork_server.start(job.cell.threads)
    timeout_s = job.config["timeout_s"] or TIMEOUTS_S[job.task]
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(
        target=_child, args=(job, dict(os.environ) | job.variables, theirs)
    )
    with _no_main_module():
        process.start()
    theirs.close()
    try:
        told = multiprocessing.connection.wait([ours, process.sentinel], timeout_s)
        answer = _answer(ours)
        if told:
            process.join(GRACE_S)  # it has nothing left to do, unless a thread of the user's has
        else:
            process.terminate()  # a training run leaves its checkpoint; or it is about to answer all the same
            multiprocessing.connection.wait([ours, process.sentinel], GRACE_S)
            answer = _answer(ours)
    finally:
        _end(process)
    if isinstance(answer, bytes):
        return store.decode(answer)
    if isinstance(answer, str):
        raise OSError(answer)
    reason = _death(process.exitcode) if told else f"took longer than timeout_s={timeout_s:g}"
    record = job.record(Status.KILLED, reason, description.bare())
    store.save(record, job.folder)
    return record


def _answer(connection: Connection) -> bytes | str | None:
    """Return what has come: the record, or why it cannot be written; None of a process that is silent or gone."""
    try:
        answer: bytes | str | None = connection.recv() if connection.poll() else None
    except EOFError:
        return None
    return answer


def _end(process: BaseProcess) -> None:
    """End the process, if it still runs: a training run leaves its checkpoint."""
    if process.is_alive():
        process.terminate()
        process.join(GRACE_S)
        process.kill()
    process.join()


def _death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"its process ended with status {exitcode} and left no record"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # one without a name, as the real-time signals
        name = f"signal {-exitcode}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
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


def _child(job: Job, variables: dict[str, str], connection: Connection) -> None:
    os.environ.update(variables)  # of hydra.job.env_set too, which the server was started before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        record = measure_cell(job)
    except StoppedError as error:
        sys.stderr.write(f"{error}\n")
        return
    encoded, ended = store.encode(record), record.status in (Status.OK, Status.DIVERGED)
    try:
        store.write(encoded, store.path_of(job.folder, job.identity))
    except OSError as error:
        connection.send(str(error))
        return
    connection.send(encoded)
    if ended:  # one that failed may go on from there; and not before the record is there
        job.checkpoint.unlink(missing_ok=True)


def _end_with_parent() -> None:
    """Wait, idle, for the parent's end: an orphan would go on measuring beside the run that takes its place."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
