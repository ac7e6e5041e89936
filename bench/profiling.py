"""Where a step's time goes, operation by operation, as ``torch.profiler`` sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from stepscale.bench.schema import Operation
from stepscale.bench.workload import Workload

BETWEEN = "(between operations)"
UNLINKED = "(kernels of no operation)"  # as a CUDA graph's


def operations(workload: Workload, least: int, synchronize: Callable[[], None]) -> list[Operation]:
    """List a step's operations over ``least`` steps or more, the dearest first: how often a step, and shares of it.

    The host's and the device's ``_share`` are an operation's own: what it calls has a row itself. ``BETWEEN`` is what
    the host spends outside of all of them: Python, that of ``record_function`` ranges too, and some of the profiler's
    own microseconds a call, for which no seconds are given. A wait for the device is an operation. ``device_share`` is
    None on a CPU, and where the profiler sees no kernel.
    """
    steps, cuda = workload.period * math.ceil(least / workload.period), workload.device.type == "cuda"
    workload.run(workload.period)  # what was put back before is cold, or still on its way
    synchronize()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, acc_events=True) as seen:  # torch 2.11 warns where it is not given
        began = time.perf_counter()
        workload.run(steps)
        synchronize()
        whole_us = 1e6 * (time.perf_counter() - began)
    events = [event for event in seen.key_averages() if not event.is_user_annotation]
    host = [event for event in events if event.device_type == DeviceType.CPU]  # with the kernels that it launched
    busy_us = sum(event.self_device_time_total for event in events if event.device_type != DeviceType.CPU)

    def row(name: str, calls: float | None, host_us: float, device_us: float) -> Operation:
        return Operation(name, calls, host_us / whole_us, device_us / whole_us if busy_us else None)

    rows = [
        row(e.key.removeprefix("aten::"), e.count / steps, e.self_cpu_time_total, e.self_device_time_total)
        for e in host
    ]
    rows.append(row(BETWEEN, None, max(0.0, whole_us - sum(e.self_cpu_time_total for e in host)), 0.0))
    if unlinked_us := max(0.0, busy_us - sum(e.self_device_time_total for e in host)):
        rows.append(row(UNLINKED, None, 0.0, unlinked_us))
    return sorted(rows, key=lambda row: -max(row.host_share, row.device_share or 0.0))
