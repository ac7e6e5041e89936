"""What the control groups that this process lies in leave it of memory and CPU, as Linux tells in files.

A group is limited by its own limit and by those of all groups around it. Version 2 has one tree of groups, version 1 a
tree for each resource, with other names of files. Needs the standard library alone, as ``server`` does.
"""

from __future__ import annotations

from pathlib import Path

ROOT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNLIMITED = 2**62  # bytes: version 1 has no word for it, and gives the largest number there is


def memory_left() -> int | None:
    """Return the bytes that are left below the closest limit; None where there is none.

    Cached files that the kernel drops first count as left.
    """
    left = [_memory_left(folder) for folder in folders("memory")]
    return min((number for number in left if number is not None), default=None)


def memory_limit() -> int | None:
    """Return the least limit, in bytes; None where there is none."""
    limits = [_memory_limit(folder) for folder in folders("memory")]
    return min((number for number in limits if number is not None), default=None)


def cpu_quota() -> float | None:
    """Return the least quota, in cores; None where there is none."""
    quotas = [_cpu_quota(folder) for folder in folders("cpu")]
    return min((cores for cores in quotas if cores is not None), default=None)


def times_throttled() -> int | None:
    """Return how often a quota has stopped any of the groups so far; None where the system does not tell."""
    told = [_statistics(folder / "cpu.stat").get("nr_throttled") for folder in folders("cpu")]
    known = [count for count in told if count is not None]
    return sum(known) if known else None


def folders(resource: str) -> list[Path]:
    """Return the folders of this process's group and of those around it, for ``cpu`` or ``memory``."""
    paths = _membership()
    top = ROOT / resource if resource in paths else ROOT
    path = Path(paths.get(resource) or paths.get("") or "/")
    if ".." in path.parts:  # the group lies outside of what this process is shown
        return [top]
    own = top / path.relative_to("/")
    return [own, *(folder for folder in own.parents if folder.is_relative_to(top))]


def _membership() -> dict[str, str]:
    """Resource -> the group's path. The tree of version 2 is for all resources and has an empty name."""
    paths: dict[str, str] = {}
    for line in _lines(MEMBERSHIP):
        _, resources, path = line.split(":", 2)
        paths |= dict.fromkeys(resources.split(","), path)
    return paths


def _memory_limit(group: Path) -> int | None:
    limit = _numbers(group / "memory.max") or _numbers(group / "memory.limit_in_bytes")
    return limit[0] if limit and limit[0] < UNLIMITED else None


def _memory_left(group: Path) -> int | None:
    limit = _memory_limit(group)
    used = _numbers(group / "memory.current") or _numbers(group / "memory.usage_in_bytes")
    if limit is None or not used:
        return None
    statistics = _statistics(group / "memory.stat")
    # version 1 counts the groups within in its usage, and in what it calls "total_"
    dropped = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
    return limit - used[0] + dropped


def _cpu_quota(group: Path) -> float | None:
    told = _numbers(group / "cpu.max")
    told = told or _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
    return told[0] / told[1] if len(told) == 2 else None


def _numbers(file: Path) -> list[int]:
    """Return the numbers in a file; no limit, which is "max" or -1, is none."""
    return [int(word) for line in _lines(file) for word in line.split() if word.isdigit()]


def _statistics(file: Path) -> dict[str, int]:
    pairs = [line.split() for line in _lines(file)]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
