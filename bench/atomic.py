"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, *, lasting: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that takes its place only when the block ends well; makes the folder where there is none.

    It outlives a power cut right after, unless ``lasting`` is false: for what can be had again, in thousands.

    Raises:
        OSError: the file cannot be written; what was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.urandom(8).hex()}.partial")  # processes of several nodes share a number
    try:
        with partial.open("wb") as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())  # or after a power cut the new name may be of an empty file
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
