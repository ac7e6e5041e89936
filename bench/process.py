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
from types import ModuleType

import torch

from stepscale.bench import environment, records, server
from stepscale.bench.job import Job
from stepscale.bench.run import measure_cell

TIMEOUTS_S = {"time": 600.0, "train": None}  # where timeout_s is null: training has budgets of its own
GRACE_S = 5.0


def run(job: Job) -> records.Record:
    """Measure a cell in a process of its own; a process that dies or takes too long leaves a ``killed`` record.

    Raises:
        OSError: the record cannot be written.
        KeyboardInterrupt: the process has been ended, and there is no record.
    """
    server.start(job.cell["threads"])
    path = job.folder / "records" / f"{job.identity}.json"
    timeout_s = job.config["timeout_s"] or TIMEOUTS_S[job.config["task"]]
    path.unlink(missing_ok=True)  # a damaged one
    process = multiprocessing.get_context("forkserver").Process(target=_child, args=(job, dict(os.environ)))
    with _no_main_module():
        process.start()
    try:
        process.join(timeout_s)
        timed_out = process.is_alive()
    finally:
        if process.is_alive():
            process.terminate()  # on which a training run leaves its checkpoint
            process.join(GRACE_S)
            process.kill()
            process.join()
    if path.exists() and not timed_out:
        return records.read(path)
    reason = f"took longer than timeout_s={timeout_s:g}" if timed_out else _death(process.exitcode)
    record = job.record("killed", reason, environment={"code": environment.code_hash(), "torch": torch.__version__})
    records.save(record, path.parent)
    return record


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {exitcode} and left no record"


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the parent's main module, which a child would else import anew: a user's script, or a test runner."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(job: Job, variables: dict[str, str]) -> None:
    os.environ.update(variables)  # of hydra.job.env_set too, which the server was started before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        records.save(measure_cell(job), job.folder / "records")
    except OSError as error:
        sys.exit(str(error))


def _end_with_parent() -> None:
    """Wait, idle, for the parent's end: an orphan would go on measuring beside the run that takes its place."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
