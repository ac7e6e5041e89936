"""What a cell leaves: a typed record, and the same record of an older schema brought up to date.

A new axis is a field of ``Cell`` with a default: records from before it keep their meaning, and tables, groups and
identities follow from the fields. What a later version only adds needs no new schema; what it would read wrongly does,
with a function in ``MIGRATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import fields

from stepscale.bench.records.contended import CONTENDED
from stepscale.bench.records.operations import Kind

SCHEMA: Literal[2] = 2
LAUNCH_BOUND = 0.25  # share of a step for which the device waits for the host
NO_BOUND = "upper bound"  # the note of a likelihood that has none on its data
UNSCALED = "common scale"  # the note of data whose columns have none
CAVEATS = (NO_BOUND, UNSCALED)
UNMARKED = "unmarked"  # the phase of what a step does after its last mark
Config = dict[str, Any]  # a resolved Hydra configuration; its keys are the user's too


class Task(StrEnum):
    """What is done with a cell."""

    TIME = "time"
    TRAIN = "train"


class Status(StrEnum):
    """How a cell ended."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    TOO_SLOW = "too_slow"
    WRONG_GRADIENT = "wrong_gradient"
    KILLED = "killed"
    FAILED = "failed"


class Cell(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is measured; beside the machine, all that two measurements must share to be of the same thing."""

    optimizer: str
    model: str
    data: str
    dim: int
    batch: int
    depth: int
    dtype: str
    device: str  # cpu or cuda
    threads: int
    seed: int


class Machine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a cell was measured, as far as its system tells."""

    cpu: str
    cores: int
    memory_gib: float | None = None
    system: str = ""
    host: str = ""
    gpu: str | None = None  # of the cells measured on it
    gpus: int = 0
    gpu_memory_gib: float | None = None
    driver: str | None = None
    usable_cores: int | None = None  # by affinity and control group
    memory_limit_gib: float | None = None  # of the control group

    @property
    def name(self) -> str:
        """Name what its times are of: the GPU, else the CPU with its cores."""
        if self.gpu is None:
            return f"{self.cpu}, {self.cores} cores"
        return self.gpu if self.gpus < 2 else f"{self.gpus} × {self.gpu}"


class Environment(Struct, kw_only=True, omit_defaults=True):
    """The software and the settings that figures depend on; what is not known is None."""

    code: str
    torch: str
    python: str | None = None
    threads: int | None = None
    blas: str | None = None
    cpu_capability: str | None = None
    allocator: dict[str, str | None] = {}
    load_1min: float | None = None
    numpy: str | None = None
    scipy: str | None = None
    pandas: str | None = None
    hydra_core: str | None = None
    stepscale: str | None = None
    commit: str | None = None
    cuda: str | None = None
    cuda_allocator: str | None = None
    tf32: bool | None = None
    flush_denormal: bool | None = None  # whether the CPU's products give zero where they would be subnormal


class Blocks(Struct):
    """The blocks in the order in which they were taken, a value each."""

    steps: list[int]
    step_s: list[float]
    wall_s: list[float]
    limit_s: list[float]  # empty where no limit is known
    other_cores: list[float | None]  # used by other processes; None where unknown


class StepClass(Struct):
    """The traced steps of a period that do the same work."""

    positions: list[int]  # in the period
    share: float  # of the period's steps
    traced: int
    phases_s: dict[str, float]  # median seconds of each phase


class Operation(Struct):
    """One operation of a profiled step."""

    operation: str
    calls: float | None  # a step
    host_share: float
    device_share: float | None


class OnGpu(Struct):
    """What only a GPU tells of a step; None where it cannot be read."""

    busy_s: float | None = None
    energy_j: float | None = None


class Traced(Struct):
    """Blocks in which every operation was timed by itself, each beside an untraced one; seconds a step, amortised."""

    block: list[int]  # the untraced one's number
    order_s: dict[int, list[float]]  # in operations whose work grows as dim^order, a value a block; UNKNOWN_ORDER too
    kind_s: list[float]  # in each of ``Counts.kinds``, the median over the blocks


class Timing(Struct, kw_only=True, omit_defaults=True):
    """A step's times, seconds, by the ``clock``: ``cpu``, the process's CPU time, ``wall`` or ``cuda``."""

    first_step_s: float
    warmup_s: float
    composed: bool
    stopped_by: str
    blocks: Blocks
    trace: list[StepClass]
    clock: str | None = None
    repeats: bool = True  # else no period was found, and the blocks went on through the step's state
    turns: str | None = None  # shared by the cells measured in turns: blocks of one number are of one round
    traced: Traced | None = None
    gpu: OnGpu | None = None
    profile: list[Operation] | None = None


class Counts(Struct, kw_only=True, omit_defaults=True):
    """A step's work, the mean over a period; a record has none where the step could not be logged."""

    flops: float
    operations: float
    synchronisations: float
    uncounted: list[str]
    limit_flops: float | None  # where a limit is known
    kinds: list[Kind] = []
    calls: list[float] = []  # of each kind, a step
    second_dim: int | None = None
    second_flops: float | None = None


class Memory(Struct, kw_only=True, omit_defaults=True):
    """A step's peak memory, and how it was read."""

    peak_mib: float | None
    read_from: str
    reserved_mib: float | None = None


class Gradient(Struct, kw_only=True):
    """How a direction comes by the log-determinant's gradient, and the cosine of what it writes to the exact one."""

    log_det: str | None = None  # a ``stepscale.models.LogDet``, which cannot be read here without torch
    cosine: float | None = None


class Number(Struct, frozen=True):
    """What a training run's figures are."""

    name: str = "log-likelihood"
    unit: str = "nats"
    exact: bool = True  # else an estimate or a bound


class Curve(Struct, kw_only=True):
    """A training run's evaluations, a value each."""

    step: list[int] = []
    seconds: list[float] = []  # of steps
    validation_nats: list[float] = []
    held_out_nats: list[float | None] = []
    drift_nats: list[float | None] = []
    halved: list[int | None] = []


class Final(Struct, kw_only=True, omit_defaults=True):
    """What a training run came to, over all rows."""

    validation_nats: float
    held_out_nats: float | None = None
    amari: float | None = None
    fast_ica_amari: float | None = None


class Trained(Struct, kw_only=True, omit_defaults=True):
    """A training run."""

    stopped_by: str
    curve: Curve
    steps: int
    seconds: float  # of steps
    other_cores: float | None = None
    resumed_at: int | None = None
    final: Final | None = None
    number: Number = Number()

    @property
    def contended(self) -> bool:
        return (self.other_cores or 0.0) > CONTENDED

    @property
    def drift_nats(self) -> float | None:
        """The largest drift that was seen."""
        return max((abs(drift) for drift in self.curve.drift_nats if drift is not None), default=None)


class Tuning(Struct, frozen=True, kw_only=True):
    """What choosing a final run's settings has taken."""

    trials: int
    ended: int  # of them
    steps: int
    seconds: float  # of steps


class DataFacts(Struct, kw_only=True, omit_defaults=True):
    """What a training run's rows are; ``bits_offset`` is None where the likelihood is not of the rows themselves.

    Where ``scale`` is known, rows are those of the user's file less ``shift``, over ``scale``, and likelihoods are in
    the file's units: −dim log ``scale`` has been added to them.
    """

    train: int
    validation: int
    held_out: int
    shape: tuple[int, int] | None = None
    bits_offset: float | None = None
    scale: float | None = None
    shift: list[float] | None = None  # [dim]


class Record(Struct, kw_only=True, omit_defaults=True):
    """All that is known of one cell: every fact inside, none in its file's name, raw blocks never averaged away."""

    schema: Literal[2]
    identity: str
    task: Task
    status: Status
    cell: Cell
    config: Config
    machine: Machine
    environment: Environment
    command: str
    finished: str
    reason: str | None = None
    signal: int | None = None  # that ended its process, twice; not by us: the cell is tried again
    sources: list[str] = []  # of its targets and data: versions, and hashes of the user's own
    looks: int = 1  # how often its run asked whether enough seeds are there; the error of a factor is spent over them
    timing: Timing | None = None
    counts: Counts | None = None
    memory: Memory | None = None
    direction: Gradient | None = None
    training: Trained | None = None
    tuning: Tuning | None = None  # of a final run whose settings trials have chosen
    data: DataFacts | None = None
    data_note: str | None = None
    traceback: str | None = None
    notes: dict[str, str] = {}  # what was extra and failed: the reason

    def __post_init__(self) -> None:
        if self.status is not Status.OK:
            return
        of_time = {"timing": self.timing, "memory": self.memory}
        of_training = {"training": self.training, "data": self.data}
        found: dict[str, object] = {**of_time} if self.task is Task.TIME else {**of_training}
        if missing := [name for name, part in found.items() if part is None]:
            raise ValueError(f"an ok record of task={self.task} needs {', '.join(missing)}")


AXES = (*(field.name for field in fields(Cell)), "machine")
GROUP = tuple(axis for axis in AXES if axis not in ("optimizer", "dim", "seed"))  # shared by cells that are compared


def schema_2(record: Config) -> Config:
    """Bring a record of schema 1 up to date: the machine has a part of its own, and so has what a GPU tells.

    Where a cell was not measured in its own process, schema 1 did not say on which machine.
    """
    environment = dict(record["environment"])
    machine = {"cpu": environment.pop("cpu", ""), "cores": environment.pop("cores", 0)}
    for name in ("memory_gib", "system", "gpu", "gpu_memory_gib"):
        if name in environment:
            machine[name] = environment.pop(name)
    machine |= {"gpus": 1} if "gpu" in machine else {}
    record = record | {"schema": 2, "task": record.get("task", "time"), "machine": machine}
    record["environment"] = {"torch": "", **environment}
    if "timing" in record:
        timing = dict(record["timing"])
        if "busy_s" in timing:
            timing["gpu"] = {name: timing.pop(name, None) for name in ("busy_s", "energy_j")}
        record["timing"] = timing
    return record


MIGRATIONS: dict[int, Callable[[Config], Config]] = {1: schema_2}  # from a schema to the next; pure functions
