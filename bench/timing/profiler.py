"""What torch's profiler sees of a step: its operations, and how long the device ran its kernels."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler import profile

from stepscale.bench.records.schema import Operation
from stepscale.bench.timing.workload import Workload

BETWEEN = "(between operations)"
UNLINKED = "(kernels of no operation)"  # as a CUDA graph's


class Span(NamedTuple):
    """A stretch of the device's time: a kernel or a copy, or what a named range launched."""

    name: str
    stream: int
    start_ns: int
    ns: int
    operation: int  # the number of the operation that launched it

    @property
    def stop_ns(self) -> int:
        return self.start_ns + self.ns


class Profile(NamedTuple):
    """What the profiler saw of some steps, and how long they took under it."""

    seen: profile
    whole_us: float


def spans(seen: profile) -> tuple[list[Span], list[Span]]:
    """Return the device's kernels, and its ranges that a user named, as ``record_function`` does.

    They are read as the profiler took them down. Its table counts a kernel with every entry of the operation's number,
    and the profiler's own, of a buffer that filled up, have one too: a step of many kernels seemed to take many
    times as long as it did.
    """
    kernels, ranges = list[Span](), list[Span]()
    for event in _events(seen):
        if event.device_type() != DeviceType.CPU:
            place = event.device_resource_id(), event.start_ns(), event.duration_ns()
            span = Span(event.name(), *place, event.linked_correlation_id())
            (ranges if event.is_user_annotation() else kernels).append(span)
    return kernels, ranges


def device_us(seen: profile) -> dict[str, float]:
    """Return the microseconds of the kernels that each operation launched, and ``UNLINKED`` of those that none did."""
    started: dict[int, tuple[int, str]] = {}  # of the entries of a number the first is the operation
    for event in _events(seen):
        if event.device_type() == DeviceType.CPU and not event.linked_correlation_id():
            number, entry = event.correlation_id(), (event.start_ns(), event.name())
            started[number] = min(started.get(number, entry), entry)
    total: dict[str, float] = defaultdict(float)
    for kernel in spans(seen)[0]:
        total[started.get(kernel.operation, (0, UNLINKED))[1]] += 1e-3 * kernel.ns
    return total


def _events(seen: profile) -> Iterable[Any]:
    return seen.kineto_results.events() if seen.kineto_results else []


def profiled(workload: Workload, steps: int, synchronize: Callable[[], None], *, host: bool = True) -> Profile:
    """Run so many steps under the profiler, which sees the host's operations only where it is asked to."""
    with watching(workload.device, host=host) as seen:
        began = time.perf_counter()
        workload.run(steps)
        synchronize()
        whole_us = 1e6 * (time.perf_counter() - began)
    return Profile(seen, whole_us)


def watching(device: torch.device, *, host: bool = True) -> profile:
    """Return a profiler of what a device does, and the host for it."""
    return profile(use_cpu=host, use_device=None if device.type == "cpu" else device.type, use_kineto=True)


def busy_seconds(workload: Workload, least: int, synchronize: Callable[[], None]) -> float | None:
    """Seconds a step, over ``least`` steps or more, for which the device ran kernels; else it waited for the host.

    None where the profiler sees no kernel, as in containers that forbid it.
    """
    steps = workload.whole_periods(least)
    kernels, _ = spans(profiled(workload, steps, synchronize, host=False).seen)
    return sum(kernel.ns for kernel in kernels) * 1e-9 / steps or None


def operations(workload: Workload, least: int, synchronize: Callable[[], None]) -> list[Operation]:
    """List a step's operations over ``least`` steps or more, the dearest first: how often a step, and shares of it.

    The host's and the device's ``_share`` are an operation's own: what it calls has a row itself. ``BETWEEN`` is what
    the host spends outside of all of them: Python, that of ``record_function`` ranges too, and some of the profiler's
    own microseconds a call, for which no seconds are given. A wait for the device is an operation. ``device_share`` is
    None on a CPU, and where the profiler sees no kernel.
    """
    steps = workload.whole_periods(least)
    workload.run(workload.period)  # what was put back before is cold, or still on its way
    synchronize()
    found = profiled(workload, steps, synchronize)
    host = [e for e in found.seen.key_averages() if e.device_type == DeviceType.CPU and not e.is_user_annotation]
    kernels_us, whole_us = device_us(found.seen), found.whole_us
    any_seen = bool(kernels_us)

    def row(name: str, calls: float | None, host_us: float) -> Operation:
        device_share = kernels_us.pop(name, 0.0) / whole_us if any_seen else None
        return Operation(name.removeprefix("aten::"), calls, host_us / whole_us, device_share)

    rows = [row(str(e.key), e.count / steps, e.self_cpu_time_total) for e in host]
    rows.append(row(BETWEEN, None, max(0.0, whole_us - sum(e.self_cpu_time_total for e in host))))
    if kernels_us:
        rows.append(Operation(UNLINKED, None, 0.0, sum(kernels_us.values()) / whole_us))
    return sorted(rows, key=lambda row: -max(row.host_share, row.device_share or 0.0))
