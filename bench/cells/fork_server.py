"""The fork server, from which every cell's process comes: it has torch loaded and has never run an operation.

Needs the standard library alone, so that a command starts the server first and both load torch at the same time.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import Any

from stepscale.bench.machine.cores import ALLOCATOR, THREADS

# the first torch optimizer of a process imports torch._dynamo: seconds, and 70 MB that are not the step's
PRELOAD = ["stepscale.bench.cells.process", "PIL.JpegImagePlugin", "torch._dynamo"]
variables: dict[str, str] = {}  # of the server's environment, beside the command's own
_started: int | None = None


def start(threads: int) -> None:
    """Have a server for that many threads, and return before it has loaded anything; another count's server is ended.

    Its environment fixes threads and allocator before torch is loaded. ``torch.set_num_threads`` would come too late,
    and on torch 2.13 makes batched LU silently wrong on CPU. The command's own environment stays the user's: what it
    starts elsewhere, as a scheduler's jobs, has the threads that there are there.
    """
    global _started, variables
    if _started == threads:
        return
    stop()
    variables = dict.fromkeys(THREADS, str(threads)) | ALLOCATOR
    if threads > 1:  # or idle threads spin into the others' turns, and against every neighbour
        variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    # torch.profiler else says when it starts and when it stops
    variables["KINETO_LOG_LEVEL"] = os.environ.get("KINETO_LOG_LEVEL", "6")
    forkserver.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # now: started later, it would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is the parent's to hear
    try:
        with _environment(variables):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _started = threads


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Add these to the environment while the block runs, for a process that is started in it."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@atexit.register
def stop() -> None:
    """End the server, if there is one, also while it still loads: by itself it would finish that first."""
    global _started
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGTERM)
        server._stop()
    _started = None
