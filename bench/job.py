"""One cell to measure, and what its configuration builds. The only place that instantiates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from stepscale.bench import environment, records
from stepscale.bench.data import Dataset
from stepscale.optimizers import Step

# learning rates follow the dim: lr: ${divide:0.3,${dim}}
OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)


TF32 = "tf32"
DTYPES = ("float32", "float64", TF32, "bfloat16")


@dataclass(frozen=True)
class Job:
    """One cell to measure: plain data, sent to the process that measures it."""

    identity: str
    cell: dict[str, Any]  # the axes of the tables: records.AXES
    config: dict[str, Any]  # the whole resolved configuration
    command: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training run of this cell lies."""
        return self.folder / "checkpoints" / f"{self.identity}.pt"

    def record(self, status: str, reason: str | None, **found: Any) -> records.Record:
        """Make this cell's record."""
        return {
            "schema": records.SCHEMA,
            "task": self.config["task"],
            "identity": self.identity,
            "status": status,
            "reason": reason,
            "cell": self.cell,
            "config": self.config,
            "command": self.command,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **found,
        }


def job_of(config: dict[str, Any], facts: dict[str, Any], command: str, folder: Path) -> Job:
    """Describe a cell by its resolved configuration and the ``facts`` that it does not hold.

    ``facts`` are device, threads and the names of optimizer, model and data.
    """
    cell = {name: config[name] for name in ("dim", "batch", "depth", "dtype", "seed")} | facts
    identity = records.identity(cell, config, environment.code_hash(), torch.__version__)
    return Job(identity, cell, config, command, folder)


def load_data(job: Job, rows: int | None) -> Dataset:
    """Load a cell's data, that many train rows."""
    load = instantiate(job.config["data"], _convert_="all")
    data: Dataset = load(dim=job.cell["dim"], rows=rows, seed=job.cell["seed"])
    return data


def number_type(dtype: str) -> torch.dtype:
    """Return the torch type of a cell's ``dtype``, and set how products of this process round.

    ``tf32`` is float32 whose products round their factors to TF32.
    """
    torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")
    found: torch.dtype = torch.float32 if dtype == TF32 else getattr(torch, dtype)
    return found


def build(job: Job, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Step]:
    """Build a cell's model and step, on its device from the start: a CPU takes minutes to initialise a wide model."""
    with device:
        model: nn.Module = instantiate(job.config["model"], _convert_="all").to(device=device, dtype=dtype)
    return model, instantiate(job.config["optimizer"], _convert_="all")(model)
