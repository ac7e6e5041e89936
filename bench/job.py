"""One cell to measure, and what its configuration builds. The only place that instantiates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from stepscale.bench.data import Dataset
from stepscale.bench.errors import UsageError
from stepscale.bench.schema import SCHEMA, Cell, Config, Environment, Machine, Record, Status, Task
from stepscale.optimizers import Step

# learning rates follow the dim: lr: ${divide:0.3,${dim}}
OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)


TF32 = "tf32"
DTYPES = ("float32", "float64", TF32, "bfloat16")


@dataclass(frozen=True)
class Job:
    """One cell to measure: plain data, sent to the process that measures it."""

    identity: str  # of all that its figures depend on; also its record's name
    cell: Cell
    config: Config  # the whole resolved configuration
    machine: Machine
    command: str
    folder: Path

    @property
    def task(self) -> Task:
        return Task(self.config["task"])

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training run of this cell lies."""
        return self.folder / "checkpoints" / f"{self.identity}.pt"

    def record(self, status: Status, reason: str | None, environment: Environment) -> Record:
        """Make this cell's record, without any figure yet."""
        return Record(
            schema=SCHEMA,
            identity=self.identity,
            task=self.task,
            status=status,
            reason=reason,
            cell=self.cell,
            config=self.config,
            machine=self.machine,
            environment=environment,
            command=self.command,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def load_data(job: Job, rows: int | None) -> Dataset:
    """Load a cell's data, that many train rows."""
    load = instantiate(job.config["data"], _convert_="all")
    data: Dataset = load(dim=job.cell.dim, rows=rows, seed=job.cell.seed)
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
    return model, build_step(job.config["optimizer"], model)


def build_step(config: Config, model: nn.Module) -> Step:
    """Build the step of an optimizer's configuration.

    Raises:
        UsageError: a part of it would be built before the model is there.
    """
    parts = {"optimizer": config} | {f"optimizer.{name}": config.get(name) for name in ("direction", "update")}
    for name, part in parts.items():
        if isinstance(part, dict) and "_target_" in part and not part.get("_partial_"):
            raise UsageError(
                f"{name} lacks `_partial_: true`; in an optimizer's file _target_, direction and update each want"
                " `_partial_: true`"
            )
    step: Step = instantiate(config, _convert_="all")(model)
    return step
