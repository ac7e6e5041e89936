"""Ctrl-C that is not lost.

Raised inside OmegaConf, or while a library loads, a `KeyboardInterrupt` comes out as another error, as an abort or not
at all. So, as long as nothing has begun, the signal ends the process itself; from then on it is remembered, and whoever
may stop asks for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

STATUS = 130  # a shell's, of what SIGINT ended

_seen = False


def leave_at_once(clean_up: Callable[[], None] = lambda: None) -> None:
    """From now on have an interrupt end this process at once; what is to be undone is undone by ``clean_up``."""

    def leave(number: int, frame: FrameType | None) -> None:
        ignore()
        clean_up()
        os.write(2, b"\ninterrupted\n")  # as sys.stderr may be in use
        os._exit(STATUS)

    signal.signal(signal.SIGINT, leave)


def ignore() -> None:
    """From now on hear no interrupt: this process is about to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def remember() -> None:
    """From now on remember that an interrupt came, and raise it as ever."""
    signal.signal(signal.SIGINT, _note)


def raise_at_termination() -> None:
    """From now on have SIGTERM raise ``SystemExit``, so that what is to be undone is undone."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def check() -> None:
    """Raise ``KeyboardInterrupt`` if one has come since."""
    if _seen:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    signal.default_int_handler(number, frame)
