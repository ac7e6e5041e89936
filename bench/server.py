"""The fork server, from which every cell's process comes: it has torch loaded and has never run an operation.

Needs the standard library alone, so that a command starts the server first and both load torch at the same time.
"""

from __future__ import annotations

import atexit
import os
import signal
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from stepscale.bench import control_group
from stepscale.bench.errors import UsageError

# the first torch optimizer of a process imports torch._dynamo: seconds, and 70 MB that are not the step's
PRELOAD = ["stepscale.bench.process", "PIL.JpegImagePlugin", "torch._dynamo"]
# without these glibc maps and unmaps every gradient of 1 MB or more, which makes strawmen of the baselines
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CPUS = Path("/sys/devices/system/cpu")
_asked = os.environ.get(THREADS[0])  # the user's: later the server's is set here
_started: int | None = None


def start(threads: int) -> None:
    """Have a server for that many threads, and return before it has loaded anything; another count's server is ended.

    Its environment fixes threads and allocator before torch is loaded. ``torch.set_num_threads`` would come too late,
    and on torch 2.13 makes batched LU silently wrong on CPU.
    """
    global _started
    if _started == threads:
        return
    stop()
    os.environ.update(dict.fromkeys(THREADS, str(threads)) | ALLOCATOR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch.profiler else says when it starts and when it stops
    forkserver.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # which would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is the parent's to hear
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _started = threads


@atexit.register
def stop() -> None:
    """End the server, if there is one, also while it still loads: by itself it would finish that first."""
    global _started
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGTERM)
        server._stop()
    _started = None


def default_threads() -> int:
    """As many as OMP_NUM_THREADS says, else every core this process may use."""
    if _asked and not (_asked.isdigit() and int(_asked)):
        raise UsageError(f"OMP_NUM_THREADS must be a whole number of at least 1, got {_asked!r}")
    return int(_asked or available_cores())


def available_cores() -> int:
    """Cores this process may use: its affinity's, or its control group's quota if that is less.

    Of a core's hyper-threads one counts: MKL starts no more threads than there are cores.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_core(cpu) for cpu in cpus})
    quota = control_group.cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _core(cpu: int) -> str:
    """Name the core of a logical CPU by the CPUs that share it; by itself where the system does not tell."""
    try:
        return (CPUS / f"cpu{cpu}/topology/core_cpus_list").read_text()
    except OSError:
        return str(cpu)
