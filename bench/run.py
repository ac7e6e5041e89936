"""A configuration -> model, step, batches -> a record. The only place that instantiates."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from stepscale.bench import environment, records
from stepscale.bench.clock import clock_of
from stepscale.bench.limit import limit_of
from stepscale.bench.timing import DivergedError, Settings, TooSlowError, measure
from stepscale.bench.workload import Workload
from stepscale.models import Batch

BATCHES = 3  # rotated, so that no step finds its batch in the cache
OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
)


@dataclass(frozen=True)
class Job:
    """One cell to measure: plain data, sent to the process that measures it."""

    identity: str
    cell: dict[str, Any]  # the axes of the tables: records.AXES
    config: dict[str, Any]  # the whole resolved configuration
    command: str
    folder: Path

    def record(self, status: str, reason: str | None, **found: Any) -> records.Record:
        """Make this cell's record."""
        return {
            "schema": records.SCHEMA,
            "identity": self.identity,
            "status": status,
            "reason": reason,
            "cell": self.cell,
            "config": self.config,
            "command": self.command,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **found,
        }


def measure_cell(job: Job) -> records.Record:
    """Measure a cell in this process; whatever goes wrong is the record's status and reason."""
    described = {"code": environment.code_hash(), "torch": torch.__version__}
    try:
        device = torch.device(job.cell["device"])
        described = environment.describe(device)
        if torch.get_num_threads() != job.cell["threads"]:
            raise RuntimeError(f"torch has {torch.get_num_threads()} threads, {job.cell['threads']} were asked for")
        environment.limit_memory(job.config["memory_gib"], device)
        torch.manual_seed(job.cell["seed"])
        found = _measure(job, device)
    except Exception as error:
        status, reason = classify(error)
        details = {"traceback": traceback.format_exc()} if status == "failed" else {}
        return job.record(status, reason, environment=described, **details)
    return job.record("ok", None, environment=described, **found)


def _measure(job: Job, device: torch.device) -> dict[str, Any]:
    dtype = getattr(torch, job.cell["dtype"])
    batches, note = load_batches(job, device, dtype)
    peak_memory = environment.start_peak_memory(device)
    workload = build(job, batches, device, dtype)
    found = measure(
        workload,
        lambda: limit_of(workload.model, batches[0], job.cell["dim"]),
        clock_of(device),
        Settings(**job.config["timing"]),
        peak_memory,
    )
    return {**found, "data_note": note}


def load_batches(job: Job, device: torch.device, dtype: torch.dtype) -> tuple[list[Batch], str]:
    """Load a cell's batches onto the device, and the data's remark."""
    load = instantiate(job.config["data"], _convert_="all")
    data = load(dim=job.cell["dim"], rows=BATCHES * job.cell["batch"], seed=job.cell["seed"])
    return list(data.train.to(device=device, dtype=dtype).split(job.cell["batch"])), data.note


def build(job: Job, batches: list[Batch], device: torch.device, dtype: torch.dtype) -> Workload:
    """Build a cell's model and step."""
    model: nn.Module = instantiate(job.config["model"], _convert_="all").to(device=device, dtype=dtype)
    return Workload(model, instantiate(job.config["optimizer"], _convert_="all")(model), batches)


def classify(error: BaseException) -> tuple[str, str]:
    """Return the status and the reason that an exception gives a cell."""
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, DivergedError | FloatingPointError):  # the latter from a direction that met a NaN
        return "diverged", str(error)
    if isinstance(error, TooSlowError):
        return "too_slow", str(error)
    words = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words_ in words for words_ in OUT_OF_MEMORY):
        return "out_of_memory", reason
    return "failed", reason
