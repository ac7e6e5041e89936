"""Ctrl-C that is not lost: raised inside OmegaConf, a `KeyboardInterrupt` comes out as another error, or not at all.

So the signal is remembered, and whoever may stop asks for it.
"""

from __future__ import annotations

import signal
from types import FrameType

STATUS = 130  # a shell's, of what SIGINT ended

_seen = False


def remember() -> None:
    """From now on remember that an interrupt came, and raise it as ever."""
    signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise ``KeyboardInterrupt`` if one has come since."""
    if _seen:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    signal.default_int_handler(number, frame)
