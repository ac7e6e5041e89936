"""Cores this process may use, and the settings of threads and allocator that a measuring process starts with.

Needs the standard library alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

from stepscale.bench.errors import UsageError
from stepscale.bench.machine import control_group

# without these glibc maps and unmaps every gradient of 1 MB or more, which makes strawmen of the baselines
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ALL = "all"  # cores
CPUS = Path("/sys/devices/system/cpu")
ALLOCATED = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")  # logical CPUs of a Slurm job; the first where it is set


def threads_for(asked: int | str | None, *, alone: bool) -> int:
    """Return how many threads a cell has: as many as asked, ``all`` for every core this process may use.

    None is what OMP_NUM_THREADS says; else one where a step is timed ``alone``, which on a CPU then has a clock that
    neighbours do not spoil, and every core otherwise.

    Raises:
        UsageError: OMP_NUM_THREADS is no whole number of at least 1.
    """
    if isinstance(asked, int):
        return asked
    if asked == ALL:
        return available_cores()
    wanted = os.environ.get(THREADS[0])
    if wanted and not (wanted.isdigit() and int(wanted)):
        raise UsageError(f"OMP_NUM_THREADS must be a whole number of at least 1, got {wanted!r}")
    return int(wanted) if wanted else 1 if alone else available_cores()


def guessed_threads(words: list[str]) -> int:
    """Return how many threads the cells of a command will have, as far as its words tell.

    Raises:
        UsageError: OMP_NUM_THREADS is no whole number of at least 1.
    """
    asked = [word.removeprefix("threads=") for word in words if word.startswith("threads=")]
    number = int(asked[-1]) if asked and asked[-1].isdigit() else None
    return threads_for(number or (ALL if asked[-1:] == [ALL] else None), alone="task=train" not in words)


def available_cores() -> int:
    """Cores this process may use: its affinity's, or its control group's quota or its job's share if that is less.

    Of a core's hyper-threads one counts: MKL starts no more threads than there are cores. Slurm binds a job to the CPUs
    that it has been given only where a site has chosen so.
    """
    limits = [len(_one_a_core()), control_group.cpu_quota(), _allocated()]
    return max(1, min(int(limit) for limit in limits if limit is not None))


def _allocated() -> int | None:
    """Return how many logical CPUs the scheduler has given a task of this job; None where it does not tell."""
    told = [os.environ.get(name, "") for name in ALLOCATED]
    return next((int(number) for number in told if number.isdigit()), None)


def last(threads: int) -> list[int]:
    """Return the logical CPUs of the last cores, one a core, that this process may use."""
    return _one_a_core()[-threads:]


def allowed() -> set[int]:
    """Return the logical CPUs that this process may use."""
    return set(os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1))


def sharing(cpus: Collection[int]) -> set[int]:
    """Return these logical CPUs and those that share a core with one of them."""
    found = set(cpus)
    for cpu in cpus:
        for part in _core(cpu).split(","):
            first, _, last_ = part.strip().partition("-")
            found |= set(range(int(first), int(last_ or first) + 1))
    return found


def _one_a_core() -> list[int]:
    return sorted({_core(cpu): cpu for cpu in sorted(allowed())}.values())


def _core(cpu: int) -> str:
    """Name the core of a logical CPU by the CPUs that share it; by itself where the system does not tell."""
    try:
        return (CPUS / f"cpu{cpu}/topology/core_cpus_list").read_text()
    except OSError:
        return str(cpu)
