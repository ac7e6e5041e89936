"""Which code measures: a hash of its source, and its commit."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
PARTS = ("bench", "models", "optimizers")
MEASURING = (
    "models", "optimizers", "bench/cells", "bench/counting", "bench/timing", "bench/training", "bench/data",
    "bench/machine",
    "bench/records/headline.py", "bench/records/contended.py",  # of which the stopping rule is made
)  # fmt: skip


@cache
def code_hash() -> str:
    """Hash the source that a figure depends on: what makes two measurements the same code's.

    What only reads records is no part of it, nor are the files of ``conf``: a cell's configuration is in its record.
    """
    digest = hashlib.sha256()
    for path in measuring_files():
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def measuring_files() -> list[Path]:
    """List the package's source files that take part in measuring a cell."""
    parts = [PACKAGE / part for part in MEASURING]
    return sorted(path for part in parts for path in ([part] if part.is_file() else part.rglob("*.py")))


@cache
def commit() -> str | None:
    """Return the commit of the checkout the package runs from, ``+changes`` if it has any; None outside of one."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel", "--short=12", "HEAD"], capture_output=True, text=True
        )
        if top.returncode or Path(top.stdout.split("\n")[0]) != PACKAGE.resolve():
            return None
        changes = subprocess.run([*git, "status", "--porcelain", "--", *PARTS], capture_output=True, text=True).stdout
    except OSError:
        return None
    return top.stdout.split("\n")[1] + ("+changes" if changes else "")
