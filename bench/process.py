"""One cell, one process: forked from a server that has torch loaded and has never run an operation.

The server's environment fixes threads and allocator before torch is loaded. ``torch.set_num_threads`` would come too
late, and on torch 2.13 makes batched LU silently wrong on CPU.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

import torch

from stepscale.bench import environment, records
from stepscale.bench.run import Job, measure_cell

PR_SET_PDEATHSIG = 1
FREE_SHARE = 0.9
# the first torch optimizer of a process imports torch._dynamo: a second, and 70 MB that are not the step's
PRELOAD = ["stepscale.bench.process", "sklearn.datasets", "torch._dynamo"]
_server_threads: int | None = None


def run(job: Job) -> records.Record:
    """Measure a cell in a process of its own; a process that dies or takes too long leaves a ``killed`` record.

    Raises:
        OSError: the record cannot be written.
        KeyboardInterrupt: the process has been ended, and there is no record.
    """
    _start_server(job.cell["threads"])
    process = multiprocessing.get_context("forkserver").Process(target=_child, args=(job,))
    with _no_main_module():
        process.start()
    try:
        process.join(job.config["timeout_s"])
        timed_out = process.is_alive()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    path = job.folder / "records" / f"{job.identity}.json"
    if path.exists() and not timed_out:
        return records.read(path)
    reason = f"took longer than timeout_s={job.config['timeout_s']:g}" if timed_out else _death(process.exitcode)
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
    _die_with_parent()
    if torch.get_num_threads() != job.cell["threads"]:
        sys.exit(f"torch has {torch.get_num_threads()} threads where {job.cell['threads']} were asked for")
    limit_memory(job.config["memory_gib"], torch.device(job.cell["device"]))
    try:
        records.save(measure_cell(job), job.folder / "records")
    except OSError as error:
        sys.exit(str(error))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(gib: float | None, device: torch.device) -> None:
    """Make allocations beyond ``gib`` fail in this process, rather than have the system kill something."""
    if device.type == "cuda":
        if gib is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)
        return
    free = _free_bytes()
    allowed = gib * 2**30 if gib is not None else free and FREE_SHARE * free
    if allowed:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (int(allowed), hard))


def _free_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
