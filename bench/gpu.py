"""What only a GPU tells of a step: how long its kernels ran, and what energy it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from stepscale.bench.workload import Workload

SECONDS = 1.0  # of steps: the counter moves a few dozen times a second


def busy_seconds(workload: Workload, least: int) -> float | None:
    """Seconds a step, over ``least`` steps or more, for which the device ran kernels; else it waited for the host.

    None where the profiler sees no kernel, as in containers that forbid it.
    """
    steps = workload.period * math.ceil(least / workload.period)
    # torch 2.11 warns where acc_events is not given
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        workload.run(steps)
        torch.cuda.synchronize(workload.device)
    events = (event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)  # type: ignore[attr-defined]
    busy = sum(event.self_device_time_total for event in events if not event.is_user_annotation)
    return busy * 1e-6 / steps or None


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Return a function that reads the joules a CUDA device has used so far; None where it cannot be read.

    NVML numbers devices regardless of ``CUDA_VISIBLE_DEVICES``, so the device is found by its UUID.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, AttributeError):  # the latter from a torch that does not know the UUID
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3


def joules(workload: Workload, steps: int, read: Callable[[], float], synchronize: Callable[[], None]) -> float:
    """Joules a step over about ``SECONDS``, in blocks of so many steps, which go on without being restored."""
    synchronize()
    began, before, blocks = time.perf_counter(), read(), 0
    while time.perf_counter() - began < SECONDS:
        workload.run(steps)
        synchronize()
        blocks += 1
    return (read() - before) / (blocks * steps)
