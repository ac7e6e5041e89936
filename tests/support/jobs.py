"""Cells to measure, brief ones."""

from pathlib import Path
from typing import Any

import torch

from stepscale.bench.cells.identity import identity
from stepscale.bench.cells.job import Job
from stepscale.bench.machine import description
from tests.support.compose import composed
from tests.support.synthetic import cell

BRIEF = ["timing.warmup_s=0.01", "timing.time_limit_s=0.05", "timing.block_s=0.002"]
THREADS = torch.get_num_threads()


def job(path: Path, *overrides: str, optimizer: str = "relative", dim: int = 8, **axes: Any) -> Job:
    """Describe a cell whose record goes below a folder."""
    config = composed(f"optimizer={optimizer}", f"dim={dim}", *BRIEF, *overrides)
    facts = cell(optimizer, dim, config["seed"], threads=THREADS, batch=config["batch"], **axes)
    machine = description.machine("cpu")
    return Job(identity(facts, config, machine, ["code", "torch"], {}), facts, config, machine, "test", path)
