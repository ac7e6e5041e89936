"""The machine, and the software that figures depend on."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec
import psutil
import torch
from msgspec.structs import replace

from stepscale.bench.machine import control_group
from stepscale.bench.machine.code_version import code_hash, commit
from stepscale.bench.machine.cores import ALLOCATOR, available_cores
from stepscale.bench.machine.memory import _field
from stepscale.bench.records.schema import Environment, Machine

LIBRARIES = ("numpy", "scipy", "pandas", "hydra-core", "stepscale")
CUDA_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the older name first, as torch reads them
DRIVER = Path("/proc/driver/nvidia/version")


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
        cuda_allocator=next((os.environ[name] for name in CUDA_ALLOCATOR if name in os.environ), None),
        tf32=torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        flush_denormal=flushes_denormals(),
        **versions,
    )


def flushes_denormals() -> bool:
    """Whether this process's CPU gives zero where a result would be subnormal, as a product tells."""
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    return not (smallest * 0.5).item()


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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
