"""Locks that keep two processes apart: one for each part of a run, and one for a machine while it measures."""

from __future__ import annotations

import getpass
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from stepscale.bench.machine.device import first_gpu

Tell = Callable[[str], None]


@contextmanager
def measuring(device: str, purpose: str, tell: Tell) -> Iterator[None]:
    """Hold the machine while something is measured on its CPU or GPU: two at once would disturb each other.

    On a GPU the lock is that GPU's. It is of one user: others' processes are seen as load, and labelled.
    """
    number = f"-{first_gpu()}" if device == "cuda" else ""
    with held(Path(tempfile.gettempdir()) / f"stepscale-{_user()}-{device}{number}.lock", purpose, tell):
        yield


@contextmanager
def measuring_part(folder: Path, part: int, tell: Tell) -> Iterator[None]:
    """Hold one part of a run: who comes second finds its cells measured."""
    with held(folder / "locks" / f"part-{part}.lock", f"measuring part {part} of {folder}", tell):
        yield


@contextmanager
def held(path: Path, purpose: str, tell: Tell) -> Iterator[None]:
    """Hold a lock; wait for whoever has it, and say for whom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(path), path.with_suffix(".owner")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for {_read(owner)}")
        lock.acquire(poll_interval=0.1)
    try:
        with suppress(OSError):  # it is for others to read, and nothing hangs on it
            words = f"process {os.getpid()} on {platform.node()}, which is {purpose}"
            owner.write_text(words, encoding="utf-8", errors="surrogateescape")  # a folder's name may be no UTF-8
        yield
    finally:
        lock.release()


def _read(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return "another process"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid())
