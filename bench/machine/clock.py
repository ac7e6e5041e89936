"""One interface to the device's time: a point in it, the seconds between two points, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

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


def clock_of(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else WallClock()


def timed(clock: Clock, run: Callable[[int], None], times: int) -> float:
    """Return the seconds of the device that ``run(times)`` takes, and wait for them."""
    start = clock.stamp()
    run(times)
    stop = clock.stamp()
    clock.synchronize()
    return clock.seconds(start, stop)
