"""One interface to the device's time: a point in it, the seconds between two points, and waiting for it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

TOLERATED = 0.1  # of CPU time beside wall time
Stamp = int | float | torch.cuda.Event
"""A point in a device's time; only the clock that took it can read it."""


class Clock(Protocol):
    """Time on the device that runs the step."""

    def stamp(self) -> Stamp:
        """Take a point in the device's time, after all work given to it so far."""
        ...

    def seconds(self, start: Stamp, stop: Stamp) -> float:
        """Seconds between two stamps; valid after ``synchronize``."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done all work given to it."""
        ...


class WallClock:
    """The clock of a CPU, where a call returns when its work is done."""

    def stamp(self) -> int:
        return time.perf_counter_ns()

    def seconds(self, start: Stamp, stop: Stamp) -> float:
        assert isinstance(start, int) and isinstance(stop, int)
        return (stop - start) * 1e-9

    def synchronize(self) -> None:
        """Nothing to wait for."""


class CpuClock:
    """The CPU time of this process, which stands still while another has the core: right where one thread does all.

    A neighbour then moves it by little: 2 % between processes where the wall clock was seen to differ by 13 %.
    """

    def stamp(self) -> int:
        return time.process_time_ns()

    def seconds(self, start: Stamp, stop: Stamp) -> float:
        assert isinstance(start, int) and isinstance(stop, int)
        return (stop - start) * 1e-9

    def synchronize(self) -> None:
        """Nothing to wait for."""


class CudaClock:
    """CUDA events, which lie in the stream between kernels; timing the enqueue is the classic mistake."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Stamp, stop: Stamp) -> float:
        assert isinstance(start, torch.cuda.Event) and isinstance(stop, torch.cuda.Event)
        return start.elapsed_time(stop) * 1e-3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_of(device: torch.device, threads: int | None = None) -> Clock:
    """Return the clock of a device; of what a CPU does with one thread it is that of the CPU time."""
    if device.type == "cuda":
        return CudaClock(device)
    return CpuClock() if threads == 1 else WallClock()


def name_of(clock: Clock) -> str:
    """Return ``cpu``, ``wall`` or ``cuda``."""
    return {CpuClock: "cpu", CudaClock: "cuda"}.get(type(clock), "wall")


class Waits(NamedTuple):
    """What a stretch of work shows of how it uses a core."""

    wall_s: float
    cpu_s: float
    switches: int  # of its own will: it waited for something

    def suit_cpu_time(self, periods: float) -> bool:
        """Whether CPU time says how long so many periods take: no step waits, or shares the work among threads."""
        waits = self.cpu_s < (1 - TOLERATED) * self.wall_s and self.switches >= max(1.0, periods / 2)
        return not waits and self.cpu_s < (1 + TOLERATED) * self.wall_s


def watched(run: Callable[[int], None], times: int) -> Waits:
    """Run so many times, and tell how that used a core."""
    switches, cpu_s, wall_s = _switches(), time.process_time(), time.perf_counter()
    run(times)
    return Waits(time.perf_counter() - wall_s, time.process_time() - cpu_s, _switches() - switches)


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def timed(clock: Clock, run: Callable[[int], None], times: int) -> float:
    """Return the seconds of the device that ``run(times)`` takes, and wait for them."""
    start = clock.stamp()
    run(times)
    stop = clock.stamp()
    clock.synchronize()
    return clock.seconds(start, stop)
