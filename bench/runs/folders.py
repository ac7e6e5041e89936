"""Where runs lie: a plan's folder is named by its content, so that the same plan goes on where it stopped."""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from pathlib import Path

LOCAL = Path("results/local")
LATEST = "latest"


def folder_of(name: str, *, anew: bool = False) -> Path:
    """Return the folder of a plan's name: the newest there is of it, or ``anew`` a further one, ``NAME-2``."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    there = [
        match
        for path in LOCAL.glob(f"{glob.escape(name)}*")
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    ]
    newest = max((int(match[1] or 1) for match in there), default=0)
    number = max(1, newest + anew)
    return LOCAL / (name if number == 1 else f"{name}-{number}")


def point_latest_at(path: Path) -> None:
    """Have ``results/local/latest`` lead to a run; where links cannot be made, do without."""
    if path.parent != LOCAL:
        return
    partial = LOCAL / f"{LATEST}.{os.getpid()}.partial"
    with suppress(OSError):
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.name)
        os.replace(partial, LOCAL / LATEST)
