"""What only a GPU tells of a step: what energy it took."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from stepscale.bench.timing.workload import Workload

SECONDS = 1.0  # of steps: the counter moves a few dozen times a second


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
