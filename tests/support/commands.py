"""The command line in a process of its own, and whether that has ended."""

import os
import subprocess
import sys
from pathlib import Path


def stepscale(
    cwd: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepscale.bench", *arguments]
    whole = os.environ | (environment or {})
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=whole)


def group_lives(group: int) -> bool:
    """Whether a process of the group still runs; one that has ended and waits to be reaped does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False
