"""One cell, one process: forked from a server that has torch loaded and has never run an operation.

The server's environment fixes threads and allocator before torch is loaded. ``torch.set_num_threads`` would come too
late, and on torch 2.13 makes batched LU silently wrong on CPU.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from types import ModuleType

import torch

from stepscale.bench import environment, records
from stepscale.bench.job import Job
from stepscale.bench.run import measure_cell

# the first torch optimizer of a process imports torch._dynamo: a second, and 70 MB that are not the step's
PRELOAD = ["stepscale.bench.process", "sklearn.datasets", "PIL.Image", "torch._dynamo"]
TIMEOUTS_S = {"time": 600.0, "train": None}  # where timeout_s is null: training has budgets of its own
GRACE_S = 5.0
_server_threads: int | None = None


def run(job: Job) -> records.Record:
    """Measure a cell in a process of its own; a process that dies or takes too long leaves a ``killed`` record.

    Raises:
        OSError: the record cannot be written.
        KeyboardInterrupt: the process has been ended, and there is no record.
    """
    _start_server(job.cell["threads"])
    path = job.folder / "records" / f"{job.identity}.json"
    timeout_s = job.config["timeout_s"] or TIMEOUTS_S[job.config["task"]]
    path.unlink(missing_ok=True)  # a damaged one
    process = multiprocessing.get_context("forkserver").Process(target=_child, args=(job,))
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


def _start_server(threads: int) -> None:
    """Have a fork server for that many threads; a later thread count gets a new server."""
    global _server_threads
    if _server_threads == threads:
        return
    if _server_threads is not None:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.update(environment.ALLOCATOR)
    forkserver.set_forkserver_preload(PRELOAD)
    _server_threads = threads


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the parent's main module, which a child would else import anew, with Hydra's and matplotlib's plug-ins."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(job: Job) -> None:
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
