"""What the numbers depend on: hardware, versions, threads, allocator, code."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import resource
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec
import psutil
import torch
from msgspec.structs import replace

from stepscale.bench import control_group
from stepscale.bench.schema import Environment, Machine, Memory
from stepscale.bench.server import ALLOCATOR, available_cores

PACKAGE = Path(__file__).parent.parent
PARTS = ("bench", "models", "optimizers")
MEASURING = (
    "agreement", "arrays", "checkpoint", "clock", "contention", "control_group", "counts", "data",
    "environment", "estimate", "files", "gpu", "images", "job", "limit", "phases", "pictures", "process",
    "profiling", "run", "separation", "server", "timing", "training", "workload",
)  # fmt: skip
LIBRARIES = ("numpy", "scipy", "pandas", "hydra-core", "stepscale")
FREE_SHARE = 0.9  # of the free memory, for a cell
DRIVER = Path("/proc/driver/nvidia/version")
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def describe() -> Environment:
    """Describe the software and the settings of this process."""
    versions = {name.replace("-", "_"): _version(name) for name in LIBRARIES}
    cuda = torch.version.cuda
    return Environment(
        code=code_hash(),
        commit=commit(),
        python=platform.python_version(),
        torch=str(torch.__version__),  # its package's metadata may lack the build, as +cu130
        threads=torch.get_num_threads(),
        blas="mkl" if torch.backends.mkl.is_available() else "other",
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        allocator={name: os.environ.get(name) for name in ALLOCATOR},
        load_1min=os.getloadavg()[0],
        cuda=cuda,
        cuda_allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        tf32=torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        **versions,
    )


def bare() -> Environment:
    """Describe the software, where the process that would measure does not tell more."""
    return Environment(code=code_hash(), commit=commit(), torch=str(torch.__version__))


@cache
def machine(device: str) -> Machine:
    """Describe this machine, as the place of cells on ``device``."""
    limit = control_group.memory_limit()
    found = Machine(
        cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=platform.platform(),
        host=platform.node(),
        usable_cores=available_cores(),
        memory_limit_gib=None if limit is None else round(limit / 2**30, 1),
    )
    if device != "cuda":
        return found
    properties = torch.cuda.get_device_properties("cuda")
    memory_gib = round(properties.total_memory / 2**30, 1)
    return replace(found, gpu=properties.name, gpus=1, gpu_memory_gib=memory_gib, driver=_driver())


def both(device: str) -> dict[str, object]:
    """Describe the machine and the software together, as plain data."""
    found: dict[str, object] = msgspec.to_builtins(machine(device)) | msgspec.to_builtins(describe())
    return found


def _driver() -> str | None:
    """Return the version of NVIDIA's driver."""
    try:
        found = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER.read_text())
    except OSError:
        return None
    return found[1] if found else None


@cache
def code_hash() -> str:
    """Hash the source that a figure depends on: what makes two measurements the same code's.

    What only reads records is no part of it, nor are the files of ``conf``: a cell's configuration is in its record.
    """
    digest = hashlib.sha256()
    for path in measuring_files():
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def measuring_files() -> list[Path]:
    """List the package's source files that take part in measuring a cell."""
    folders = [PACKAGE / "models", PACKAGE / "optimizers"]
    found = [path for folder in folders for path in folder.rglob("*.py")]
    return sorted(found + [PACKAGE / "bench" / f"{name}.py" for name in MEASURING])


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


def start_peak_memory(device: torch.device) -> Callable[[], Memory]:
    """Start watching this process's peak memory; the result, called, gives the peak since now and how it was read.

    On CUDA the allocator's own peak (and what it reserved); on CPU the resident set's high-water mark less its value
    now, which includes buffers of the libraries.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: Memory(
            peak_mib=torch.cuda.max_memory_allocated(device) / 2**20,
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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
