"""What the numbers depend on: hardware, versions, threads, allocator, code."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import resource
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from stepscale.bench import control_group
from stepscale.bench.server import ALLOCATOR

PACKAGE = Path(__file__).parent.parent
PARTS = ("bench", "models", "optimizers")
LIBRARIES = ("numpy", "scipy", "pandas", "hydra-core", "stepscale")
FREE_SHARE = 0.9  # of the free memory, for a cell
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe machine, versions and settings, as found in this process."""
    environment = {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,  # its package's metadata may lack the build, as +cu130
        "threads": torch.get_num_threads(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
        "load_1min": os.getloadavg()[0],
        **{name.replace("-", "_"): _version(name) for name in LIBRARIES},
        "code": code_hash(),
        "commit": commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        environment |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cuda_allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return environment


@cache
def code_hash() -> str:
    """Hash the package's own source and configuration: what makes two measurements the same code's."""
    digest = hashlib.sha256()
    for part in PARTS:
        folder = PACKAGE / part
        for path in sorted(p for p in folder.rglob("*") if p.suffix in {".py", ".yaml"}):
            digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def commit() -> str | None:
    """Return the commit of the checkout the package runs from, ``+changes`` if it has any; None outside of one."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel", "--short=12", "HEAD"], capture_output=True, text=True
        )
        if top.returncode or Path(top.stdout.split("\n")[0]) != PACKAGE.resolve():
            return None
        changes = subprocess.run([*git, "status", "--porcelain", "--", *PARTS], capture_output=True, text=True).stdout
    except OSError:
        return None
    return top.stdout.split("\n")[1] + ("+changes" if changes else "")


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


def start_peak_memory(device: torch.device) -> Any:
    """Start watching this process's peak memory; the result, called, gives ``peak_mib`` since now and how it was read.

    On CUDA the allocator's own peak (and what it reserved); on CPU the resident set's high-water mark less its value
    now, which includes buffers of the libraries.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: {
            "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20,
            "reserved_mib": torch.cuda.max_memory_reserved(device) / 2**20,
            "read_from": "allocator",
        }
    try:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # else the step would reuse what loading the data has freed, and show no growth
        CLEAR_REFS.write_text("5")  # resets VmHWM to VmRSS
    except (OSError, AttributeError):
        return lambda: {"peak_mib": None, "read_from": "unknown"}
    start = psutil.Process().memory_info().rss / 2**20
    return lambda: {"peak_mib": _status_mib("VmHWM") - start, "read_from": "RSS"}


def _status_mib(name: str) -> float:
    field = _field(STATUS, name) or "0"
    return int(field.split()[0]) / 1024


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
