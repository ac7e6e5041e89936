"""Which processes a command has left, told by a mark in the environment that each of them inherits."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection
from contextlib import suppress

import psutil

MARK = "STEPSCALE_RELIABILITY"


def marked() -> tuple[str, dict[str, str]]:
    """Return a mark that no other process has, and an environment with it."""
    mark = uuid.uuid4().hex
    return mark, os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}


def left(mark: str, spared: Collection[int] = ()) -> list[psutil.Process]:
    """List the processes that carry the mark and have not ended, but for those that are spared."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get(MARK) == mark and process.pid not in spared
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def survivors(mark: str, seconds: float, spared: Collection[int] = ()) -> list[str]:
    """Wait for the processes of a mark to end; name those that have not, and end them."""
    psutil.wait_procs(left(mark, spared), timeout=seconds)
    named = []
    for process in left(mark, spared):
        with suppress(psutil.Error):
            named.append(f"{' '.join(process.cmdline())} ({process.status()}, parent {process.ppid()})")
            process.kill()
    return named
