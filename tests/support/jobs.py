"""Cells to measure, brief ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepscale.bench.cells.identity import identity
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.measure import log_operations
from stepscale.bench.counting.growth import second_dims
from stepscale.bench.machine import description
from tests.support.compose import composed
from tests.support.synthetic import cell

BRIEF = ["timing.warmup_s=0.01", "timing.time_limit_s=0.05", "timing.block_s=0.002"]
THREADS = torch.get_num_threads()


def job(path: Path, *overrides: str, optimizer: str = "relative", dim: int = 8, **axes: Any) -> Job:
    """Describe a cell whose record goes below a folder."""
    config = composed(f"optimizer={optimizer}", f"dim={dim}", *BRIEF, *overrides)
    facts = cell(optimizer, dim, config["seed"], **{"threads": THREADS, "batch": config["batch"]} | axes)
    machine = description.machine("cpu")
    made = Job(identity(facts, config, machine, ["code", "torch"], {}), facts, config, machine, "test", path)
    others = {
        other: composed(f"optimizer={optimizer}", *BRIEF, *overrides, f"dim={other}") for other in second_dims(dim)
    }
    return replace(made, nearby=others, log_name=made.identity)


def logged(job: Job) -> Job:
    """Give a cell the log of its operations, made in this process."""
    return replace(job, log=log_operations(job))
