"""One cell to measure: plain data, sent to the process that measures it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import (
    SCHEMA,
    Cell,
    Config,
    Environment,
    Machine,
    Record,
    Status,
    Task,
    Tuning,
)

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
    sources: list[str] = field(default_factory=list)  # what its targets and data are
    variables: dict[str, str] = field(default_factory=dict)  # of its process's environment, beside the command's own
    nearby: dict[int, Config] = field(default_factory=dict)  # its configuration at other dims, to see its work grow
    log_name: str = ""  # of the log of its operations, which seeds share
    log: StepLog = field(default_factory=StepLog)  # its operations, once they are logged
    turns: str | None = None  # shared by the cells that are measured in turns
    looks: int = 1  # how often the run asks whether enough seeds are there
    tuning: Tuning | None = None  # what choosing its settings has taken

    @property
    def task(self) -> Task:
        return Task(self.config["task"])

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training run of this cell lies."""
        return self.folder / "checkpoints" / f"{self.identity}.pt"

    def at(self, dim: int) -> Job:
        """Return the same cell at another dim.

        Raises:
            KeyError: it has no configuration there.
        """
        if dim == self.cell.dim:
            return self
        return dataclasses.replace(self, cell=msgspec.structs.replace(self.cell, dim=dim), config=self.nearby[dim])

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
            sources=self.sources,
            looks=self.looks,
            tuning=self.tuning,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
