"""How much of the machine other processes used: what spoils a measurement on a shared machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

from stepscale.bench.machine import cores

BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # a guest's time is in user's and in nice's
LISTED = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # as /proc/stat has them, in ticks
TICKS = os.sysconf("SC_CLK_TCK")  # a second
WINDOW_S = 0.1  # the kernel's ticks are 10 ms: over a shorter time they tell nothing


def idle_cores(device: str, threads: int) -> int:
    """How many of its CPUs a cell leaves to others: with its step on a GPU, all but the one that launches it."""
    return len(cores.allowed()) - (1 if device == "cuda" else threads)


class OtherCpu:
    """Watches the CPU that other processes use of what ours may use; its answer is None where the system does not tell.

    A hyper-thread beside one of our CPUs takes as much from us as one on it. What happens between ``pause`` and
    ``resume`` is not looked at.

    Args:
        idle_cores: that the measured process leaves to others.
        ours: seconds of CPU that whatever is measured has used so far.
        window_s: no answer comes sooner after the last.
        cpus: that the measured process may use; None where it is this one.
    """

    def __init__(
        self,
        idle_cores: int,
        ours: Callable[[], float] = time.process_time,
        window_s: float = WINDOW_S,
        cpus: Collection[int] | None = None,
    ) -> None:
        self._cpus = cores.sharing(cores.allowed() if cpus is None else cpus)
        self._idle, self._ours, self._window_s = idle_cores, ours, window_s
        self._wall, self._seen_s, self._used_s = 0.0, 0.0, 0.0
        self._busy: float | None = None
        self.restart()
        self.readable = self._busy is not None

    def cores(self) -> float | None:
        """Return how many cores others took from us since the last answer; None if that is too short ago."""
        self.pause()
        self.resume()
        if self._busy is None or self._seen_s < self._window_s:
            return None
        used = self._used_s / self._seen_s
        self._seen_s = self._used_s = 0.0
        return max(0.0, used - self._idle)

    def restart(self) -> None:
        """Forget what has been used so far."""
        self._seen_s = self._used_s = 0.0
        self.resume()

    def pause(self) -> None:
        """Look no further until ``resume``."""
        now, busy = time.perf_counter(), self._others()
        self._seen_s += now - self._wall
        self._used_s += (busy or 0.0) - (self._busy or 0.0)

    def resume(self) -> None:
        """Look again."""
        self._wall, self._busy = time.perf_counter(), self._others()

    def _others(self) -> float | None:
        """Seconds of CPU that were not ours."""
        busy = busy_seconds(self._cpus)
        return None if busy is None else busy - self._ours()


def busy_seconds(cpus: Collection[int]) -> float | None:
    """Seconds that these logical CPUs have worked since the machine's start, or all where each is not told of."""
    by_cpu = _busy_by_cpu()
    if by_cpu.keys() >= set(cpus):
        return sum(by_cpu[cpu] for cpu in cpus)
    try:
        times = psutil.cpu_times()._asdict()
    except OSError:
        return None
    return sum(times[kind] for kind in BUSY if kind in times)  # not every system tells all of them apart


def _busy_by_cpu() -> dict[int, float]:
    """Return the seconds that each logical CPU has worked; psutil has no numbers, which differ where one is off."""
    try:
        lines = Path(psutil.PROCFS_PATH, "stat").read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        if match := re.fullmatch(r"cpu(\d+)((?: \d+)+)", line):
            ticks = dict(zip(LISTED, map(int, match[2].split()), strict=False))
            found[int(match[1])] = sum(ticks.get(kind, 0) for kind in BUSY) / TICKS
    return found
