"""What only a GPU tells of a step: what energy it took."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from stepscale.bench.timing.workload import Workload

SECONDS = 0.5  # of steps
STILL_S = 2.0  # a counter moves more often


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
    """Joules a step over about ``SECONDS``, in blocks of so many steps, which go on without being restored.

    The counter moves a few times a second only: what is measured begins and ends with a move of it.

    Raises:
        RuntimeError: it does not move.
    """

    def until_it_moves(least_s: float) -> tuple[float, int]:
        """Run blocks for so long, and on until it moves; return what it then says, and how many blocks that were."""
        began, before, blocks = time.perf_counter(), read(), 0
        while True:
            workload.run(steps)
            synchronize()
            blocks, now, spent_s = blocks + 1, read(), time.perf_counter() - began
            if spent_s >= least_s and now != before:
                return now, blocks
            if spent_s > least_s + STILL_S:
                raise RuntimeError(f"the counter of energy has stood still at {now:g} J for {STILL_S:g} s")
            before = now

    synchronize()
    first, _ = until_it_moves(0.0)
    last, blocks = until_it_moves(SECONDS)
    return (last - first) / (blocks * steps)
