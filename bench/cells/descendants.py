"""The processes that a cell's own starts: they are ended with it, whatever they do."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
ROUNDS = 5


def lead() -> None:
    """Make this process lead a group of its own, and on Linux be the parent of descendants whose parent has ended."""
    os.setsid()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end() -> None:
    """End every descendant of this process, also those that lead a group of their own."""
    with suppress(Exception):  # a user's code may have changed anything
        for _ in range(ROUNDS):  # one that was about to start another has done so
            if not (there := psutil.Process().children(recursive=True)):
                break
            for process in there:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(there, timeout=1)
