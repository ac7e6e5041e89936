"""What a cell leaves: a typed record, and the same record of an older schema brought up to date.

A new axis is a field of ``Cell`` with a default: records from before it keep their meaning, and tables, groups and
identities follow from the fields. What a later version only adds needs no new schema; what it would read wrongly does,
with a function in ``MIGRATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import fields, replace

from stepscale.bench.records.contended import CONTENDED
from stepscale.bench.records.operations import Kind
from stepscale.bench.records.ranges import (
    Amount,
    Cosine,
    Finite,
    Name,
    Positive,
    Seconds,
    Share,
    Size,
    StepSeconds,
    Whole,
    refuse_boundless,
    same_lengths,
)

SCHEMA: Literal[2] = 2
LAUNCH_BOUND = 0.25  # share of a step for which the device waits for the host
NO_BOUND = "upper bound"  # the note of a likelihood that has none on its data
UNSCALED = "common scale"  # the note of data whose columns have none
CAVEATS = (NO_BOUND, UNSCALED)
LEAST_SIZES = 3  # of batches, that a law of the batch is fitted to
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

    optimizer: Name
    model: Name
    data: Name
    dim: Size
    batch: Size
    depth: Size
    dtype: Name
    device: Name  # cpu or cuda
    threads: Size
    seed: Whole


class Machine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a cell was measured, as far as its system tells."""

    cpu: str
    cores: Whole
    memory_gib: Amount | None = None
    system: str = ""
    host: str = ""
    gpu: str | None = None  # of the cells measured on it
    gpus: Whole = 0
    gpu_memory_gib: Amount | None = None
    driver: str | None = None
    usable_cores: Whole | None = None  # by affinity and control group
    memory_limit_gib: Amount | None = None  # of the control group

    @property
    def name(self) -> str:
        """Name what its times are of: the GPU, else the CPU with its cores."""
        if not self.cpu:  # of cells that older versions did not measure
            return "a machine that is not known"
        if self.gpu is None:
            return f"{self.cpu}, {self.cores} cores"
        return self.gpu if self.gpus < 2 else f"{self.gpus} × {self.gpu}"


class Environment(Struct, kw_only=True, omit_defaults=True):
    """The software and the settings that figures depend on; what is not known is None."""

    code: str
    torch: str
    python: str | None = None
    threads: Whole | None = None
    blas: str | None = None
    cpu_capability: str | None = None
    allocator: dict[str, str | None] = {}
    load_1min: Amount | None = None
    numpy: str | None = None
    scipy: str | None = None
    pandas: str | None = None
    hydra_core: str | None = None
    stepscale: str | None = None
    commit: str | None = None
    cuda: str | None = None
    cuda_allocator: str | None = None
    tf32: bool | None = None
    wait_policy: str | None = None  # OMP_WAIT_POLICY: whether threads that wait spin
    flush_denormal: bool | None = None  # whether the CPU's products give zero where they would be subnormal


class Blocks(Struct):
    """The blocks in the order in which they were taken, a value each."""

    steps: list[Size]
    step_s: list[StepSeconds]
    wall_s: list[Seconds]
    limit_s: list[StepSeconds]  # empty where no limit is known
    other_cores: list[Amount | None]  # used by other processes; None where unknown

    def __post_init__(self) -> None:
        same_lengths("blocks", self.steps, self.step_s, self.wall_s, self.limit_s or self.steps, self.other_cores)


class StepClass(Struct):
    """The traced steps of a period that do the same work."""

    positions: list[Whole]  # in the period
    share: Share  # of the period's steps
    traced: Whole
    phases_s: dict[str, Seconds]  # median seconds of each phase


class Operation(Struct):
    """One operation of a profiled step."""

    operation: str
    calls: Amount | None  # a step
    host_share: Finite
    device_share: Finite | None


class OnGpu(Struct):
    """What only a GPU tells of a step; None where it cannot be read."""

    busy_s: Seconds | None = None
    energy_j: Amount | None = None


class Traced(Struct):
    """Blocks in which every operation was timed by itself, each beside an untraced one; seconds a step, amortised."""

    block: list[Whole]  # the untraced one's number
    order_s: dict[int, list[Seconds]]  # in operations whose work grows as dim^order, a value a block; UNKNOWN_ORDER too
    kind_s: list[Seconds]  # in each of ``Counts.kinds``, the median over the blocks

    def __post_init__(self) -> None:
        same_lengths("traced blocks", self.block, *self.order_s.values())


class Timing(Struct, kw_only=True, omit_defaults=True):
    """A step's times, seconds, by the ``clock``: ``cpu``, the process's CPU time, ``wall`` or ``cuda``."""

    first_step_s: Seconds
    warmup_s: Seconds
    composed: bool
    stopped_by: str
    blocks: Blocks
    trace: list[StepClass]
    clock: Annotated[str, Meta(pattern="^(cpu|wall|cuda)$")] | None = None
    repeats: bool = True  # else no period was found, and the blocks went on through the step's state
    turns: str | None = None  # shared by the cells measured in turns: blocks of one number are of one round
    graphs: Whole | None = None  # pieces that torch.compile has cut the step into; None where it was not compiled
    traced: Traced | None = None
    gpu: OnGpu | None = None
    profile: list[Operation] | None = None

    def __post_init__(self) -> None:
        if not sum(seconds for entry in self.trace for seconds in entry.phases_s.values()) > 0:
            raise ValueError("the traced steps took no time")
        if self.traced and not all(block < len(self.blocks.steps) for block in self.traced.block):
            raise ValueError("a traced block is beside none")


class Counts(Struct, kw_only=True, omit_defaults=True):
    """A step's work, the mean over a period; a record has none where the step could not be logged."""

    flops: Amount
    operations: Amount
    synchronisations: Amount
    uncounted: list[str]
    limit_flops: Amount | None  # where a limit is known
    kinds: list[Kind] = []
    calls: list[Amount] = []  # of each kind, a step
    second_dim: Size | None = None
    second_flops: Amount | None = None

    def __post_init__(self) -> None:
        same_lengths("kinds of operations and their calls", self.kinds, self.calls)


class Memory(Struct, kw_only=True, omit_defaults=True):
    """A step's peak memory, and how it was read."""

    peak_mib: Amount | None
    read_from: str
    reserved_mib: Amount | None = None


class Gradient(Struct, kw_only=True):
    """How a direction comes by the log-determinant's gradient, and the cosine of what it writes to the exact one."""

    log_det: str | None = None  # a ``stepscale.models.LogDet``, which cannot be read here without torch
    cosine: Cosine | None = None


class Number(Struct, frozen=True):
    """What a training run's figures are."""

    name: str = "log-likelihood"
    unit: str = "nats"
    exact: bool = True  # else an estimate or a bound


class Curve(Struct, kw_only=True):
    """A training run's evaluations, a value each."""

    step: list[Whole] = []
    seconds: list[Seconds] = []  # of steps
    validation_nats: list[Finite] = []
    held_out_nats: list[Finite | None] = []
    drift_nats: list[Finite | None] = []
    halved: list[Whole | None] = []
    inner_iterations: list[Whole | None] = []  # of all steps so far; earlier records have none

    def __post_init__(self) -> None:
        self.inner_iterations = self.inner_iterations or [None] * len(self.step)
        figures = self.validation_nats, self.held_out_nats, self.drift_nats, self.halved, self.inner_iterations
        same_lengths("a curve's points", self.step, self.seconds, *figures)


class Final(Struct, kw_only=True, omit_defaults=True):
    """What a training run came to, over all rows."""

    validation_nats: Finite
    held_out_nats: Finite | None = None
    amari: Amount | None = None
    fast_ica_amari: Amount | None = None


class Spectrum(Struct):
    """The density of a Hessian's eigenvalues: some of them, each with a share of all."""

    batch: Size  # rows that the Hessian is of
    values: list[Finite]
    weights: list[Amount]  # they sum to 1

    def __post_init__(self) -> None:
        same_lengths("eigenvalues and their weights", self.values, self.weights)
        if not self.values:
            raise ValueError("a spectrum needs eigenvalues")


class Curvature(Struct):
    """A trained model's Hessian: its largest eigenvalue by the size of the batch, and its spectrum."""

    batch: list[Size]
    largest: list[list[Finite]]  # of each size, one a random batch
    spectra: list[Spectrum]

    def __post_init__(self) -> None:
        same_lengths("sizes of batches and their eigenvalues", self.batch, self.largest)
        if len(set(self.batch)) < LEAST_SIZES or not all(self.largest):
            raise ValueError(f"a curvature needs eigenvalues of at least {LEAST_SIZES} sizes of batches")


class Trained(Struct, kw_only=True, omit_defaults=True):
    """A training run."""

    stopped_by: str
    curve: Curve
    steps: Whole
    seconds: Seconds  # of steps
    other_cores: Amount | None = None
    resumed_at: Whole | None = None
    final: Final | None = None
    number: Number = Number()
    curvature: Curvature | None = None

    @property
    def contended(self) -> bool:
        return (self.other_cores or 0.0) > CONTENDED

    @property
    def drift_nats(self) -> float | None:
        """The largest drift that was seen."""
        return max((abs(drift) for drift in self.curve.drift_nats if drift is not None), default=None)


class Tuning(Struct, frozen=True, kw_only=True):
    """What choosing a final run's settings has taken."""

    trials: Whole
    ended: Whole  # of them
    steps: Whole
    seconds: Seconds  # of steps


class DataFacts(Struct, kw_only=True, omit_defaults=True):
    """What a training run's rows are; ``bits_offset`` is None where the likelihood is not of the rows themselves.

    Where ``scale`` is known, rows are those of the user's file less ``shift``, over ``scale``, and likelihoods are in
    the file's units: −dim log ``scale`` has been added to them.
    """

    train: Whole
    validation: Whole
    held_out: Whole
    shape: tuple[Size, Size] | None = None
    bits_offset: Finite | None = None
    scale: Positive | None = None
    shift: list[Finite] | None = None  # [dim]


class _TimingSettings(Struct):
    """What is read of a configuration's ``timing``."""

    max_step_s: Positive


class _TrainingSettings(Struct):
    """What is read of a configuration's ``training``."""

    trial: bool
    max_steps: Amount | None = None
    time_limit_s: Amount | None = None


class _DataSettings(Struct):
    """What is read of a configuration's ``data``; earlier records have no width of its own."""

    dim: Size | None = None


class _TimedBy(Struct):
    """The part of a timed cell's configuration that readers of its record rely on."""

    task: Task
    timing: _TimingSettings


class _TrainedBy(Struct):
    """That of a trained one's."""

    task: Task
    training: _TrainingSettings
    data: _DataSettings
    optimizer: Config


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
    looks: Size = 1  # how often its run asked whether enough seeds are there; the error of a factor is spent over them
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

    @property
    def settled(self) -> bool:
        """Whether its cell need not be measured again: what failed may be mended, a signal may come from outside."""
        return self.status is not Status.FAILED and self.signal is None

    @property
    def standing(self) -> tuple[bool, str]:
        """Order a cell's records by what counts: one that is settled before one that is not, then the latest."""
        return self.settled, self.finished

    @property
    def published(self) -> Record:
        """The same record without its host and the words that were typed, which a published copy has otherwise."""
        return replace(self, command="", machine=replace(self.machine, host=""))

    def __post_init__(self) -> None:
        refuse_boundless(self.config)
        msgspec.convert(self.config, _TimedBy if self.task is Task.TIME else _TrainedBy)
        if self.timing and self.timing.traced and self.counts:
            same_lengths("kinds of operations and their times", self.counts.kinds, self.timing.traced.kind_s)
        if self.counts and self.counts.second_dim == self.cell.dim:
            raise ValueError("the second dim is the first")
        if self.status is Status.OK:
            self._require_figures()

    def _require_figures(self) -> None:
        of_time = {"timing": self.timing, "memory": self.memory}
        of_training = {"training": self.training, "data": self.data}
        found: dict[str, object] = {**of_time} if self.task is Task.TIME else {**of_training}
        if missing := [name for name, part in found.items() if part is None]:
            raise ValueError(f"an ok record of task={self.task} needs {', '.join(missing)}")
        if self.timing and not self.timing.blocks.steps:
            raise ValueError("an ok record of task=time needs blocks")
        if self.training and not (self.training.final and self.training.curve.step):
            raise ValueError("an ok record of task=train needs a curve and a final figure")


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
