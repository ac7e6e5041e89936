"""Where a step's time goes, operation by operation, as ``torch.profiler`` sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from stepscale.bench.workload import Workload

LISTED = 10
BETWEEN = "(between operations)"  # Python, and on a GPU the wait for it


def dearest(workload: Workload, least: int, synchronize: Callable[[], None]) -> list[dict[str, Any]]:
    """List the operations that take longest, over ``least`` steps or more: how often a step, and their shares of it.

    The host's and the device's ``_share`` are an operation's own: what it calls has a row itself. ``BETWEEN`` is what
    the host spends outside of all of them. Seconds are not given: the profiler adds some microseconds to every call.
    """
    steps = workload.period * math.ceil(least / workload.period)
    cuda = workload.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as seen:
        began = time.perf_counter()
        workload.run(steps)
        synchronize()
        whole = time.perf_counter() - began
    rows = [
        {
            "operation": event.key.removeprefix("aten::"),
            "calls": event.count / steps,
            "host_share": event.self_cpu_time_total * 1e-6 / whole,
            "device_share": event.self_device_time_total * 1e-6 / whole if cuda else None,
        }
        for event in seen.key_averages()
        if event.device_type == DeviceType.CPU  # a kernel's time is with the operation that launched it
    ]
    between = max(0.0, 1 - sum(row["host_share"] for row in rows))
    rows.append({"operation": BETWEEN, "calls": None, "host_share": between, "device_share": 0.0 if cuda else None})
    return sorted(rows, key=lambda row: -max(row["host_share"], row["device_share"] or 0.0))[:LISTED]
