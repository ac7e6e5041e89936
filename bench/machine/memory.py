"""Memory: what is free, a limit, and a peak."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from stepscale.bench.machine import control_group
from stepscale.bench.records.schema import Memory

FREE_SHARE = 0.9  # of the free memory, for a cell
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def available_bytes() -> int:
    """Memory that is free, or left to this process's control group if that is less."""
    free, left = psutil.virtual_memory().available, control_group.memory_left()
    return free if left is None else min(free, left)


def limit_memory(gib: float | None, device: torch.device) -> None:
    """Make allocations of ``gib`` beyond what this process holds fail, rather than have the system kill something."""
    if device.type == "cuda":
        if gib is not None:
            index = torch.cuda.current_device()
            total = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), index)
        return
    allowed = gib * 2**30 if gib is not None else FREE_SHARE * max(0, available_bytes())
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = int(allowed + 2**20 * _status_mib("VmData"))
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def start_peak_memory(device: torch.device) -> Callable[[], Memory]:
    """Start watching this process's peak memory; the result, called, gives the peak since now and how it was read.

    Either is less what is there now. On CUDA it is the allocator's own peak, beside all that it has reserved; on CPU
    the resident set's high-water mark, which includes buffers of the libraries.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        there = torch.cuda.memory_allocated(device)
        return lambda: Memory(
            peak_mib=(torch.cuda.max_memory_allocated(device) - there) / 2**20,
            reserved_mib=torch.cuda.max_memory_reserved(device) / 2**20,
            read_from="allocator",
        )
    try:
        # else the step would reuse what loading the data has freed, and show no growth
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text("5")  # resets VmHWM to VmRSS
    except (OSError, AttributeError):
        return lambda: Memory(peak_mib=None, read_from="unknown")
    start = psutil.Process().memory_info().rss / 2**20
    return lambda: Memory(peak_mib=_status_mib("VmHWM") - start, read_from="RSS")


def _status_mib(name: str) -> float:
    field = _field(STATUS, name) or "0"
    return int(field.split()[0]) / 1024


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)
