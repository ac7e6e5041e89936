"""Which processes a command has left, told by a mark in the environment that each of them inherits."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress

import psutil

MARK = "STEPSCALE_RELIABILITY"


def marked() -> tuple[str, dict[str, str]]:
    """Return a mark that no other process has, and an environment with it."""
    mark = uuid.uuid4().hex
    return mark, os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}


def left(mark: str) -> list[psutil.Process]:
    """List the processes that carry the mark and have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ended(mark: str, seconds: float) -> list[psutil.Process]:
    """Wait for the processes of a mark to end; return those that have not, and end them."""
    psutil.wait_procs(left(mark), timeout=seconds)
    found = left(mark)
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    return found
