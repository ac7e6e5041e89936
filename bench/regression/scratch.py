"""A folder for as long as a process needs it; those that killed processes have left are removed by the next."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "stepscale-regress-"
LOCK = "in-use.lock"
YOUNG_S = 3600.0  # one without a lock may be about to get it


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder beside the other temporary ones, and remove it at the end of the block, however that ends."""
    remove_stale(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder,
        FileLock(Path(folder, LOCK)),  # which the kernel lets go of when this process ends
    ):
        yield Path(folder)


def remove_stale(where: Path) -> None:
    """Remove the folders whose process has ended without removing them."""
    for folder in where.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):  # another user's, or in use
            if (folder / LOCK).exists():
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder)
            elif time.time() - folder.stat().st_mtime > YOUNG_S:
                shutil.rmtree(folder)
