"""The way from a plan to its records: every part in turn, every cell composed, described and measured."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

from stepscale.bench.cells.identity import OWN, identity, sources
from stepscale.bench.cells.job import DTYPES, TF32, Job
from stepscale.bench.config import CellConfig, Words, compose_cell, expand
from stepscale.bench.counting.growth import second_dims
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import code_version, cores, description
from stepscale.bench.machine.device import choose_device, require_present
from stepscale.bench.records import tables
from stepscale.bench.records.schema import GROUP, Cell, Config, Record, Task, Tuning
from stepscale.bench.runs import tuning
from stepscale.bench.runs.locks import measuring_part
from stepscale.bench.runs.plan import Plan, Point
from stepscale.bench.runs.run import Run
from stepscale.bench.timing import time_step
from stepscale.bench.timing.log_period import SMALL
from stepscale.bench.training import loop

Tell = Callable[[str], None]
SETTINGS: dict[Task, Callable[..., object]] = {Task.TIME: time_step.Settings, Task.TRAIN: loop.Settings}
TOGETHER = 24  # cells that are measured in turns: each is a process that keeps its memory


def conduct(plan: Plan, run: Run, command: str, only: Sequence[int] | None = None) -> list[str]:
    """Measure what is left of a plan; return what could not be planned or described, a sentence each.

    Of the parts ``only`` some may be asked for: nothing is measured then that hangs on what others find.

    Raises:
        KeyboardInterrupt: an interrupt came; what is measured is recorded.
        OSError: a record cannot be written.
    """
    faults, trials = list(plan.faults), list[list[Record]]()
    for number, cells in enumerate(plan.parts):
        if only is not None and number not in only:
            continue
        records, told = measure_part(cells, number, run, command, looks(plan))
        trials.append(records)
        faults += told
    if only is not None:
        return list(dict.fromkeys(faults))
    for number, point in enumerate(plan.points, len(plan.parts)):
        faults += train_point(plan, point, [] if point.trials is None else trials[point.trials], number, run, command)
    faults += measure_further(plan, run, command)
    return list(dict.fromkeys(faults))


def train_point(plan: Plan, point: Point, short: list[Record], number: int, run: Run, command: str) -> list[str]:
    """Try the best of a point's trials for as long as a final run, then train it; return what could not be done.

    Where none of those that were tried comes to its end, the next best are tried, until one does.
    """
    ranked, tried, faults = tuning.ranked(short), list[Record](), list[str]()
    expected = plan.finalists(point)
    while ranked and not tuning.ranked(tried):
        chosen, ranked = ranked[: tuning.FINALISTS], ranked[tuning.FINALISTS :]
        _expect(run, len(chosen) - expected)
        cells = [words for trial in chosen for words in expand(tuning.full_length(point.words, trial))]
        records, told = measure_part(cells, len(plan.points) + number, run, command)
        tried, faults, expected = tried + records, faults + told, 0
    try:
        finals = plan.finals(point, tried)
    except UsageError as error:
        return [*faults, str(error)]
    return faults + measure_part(finals, number, run, command, tuned=tuning.spent(short + tried))[1]


def _expect(run: Run, more: int) -> None:
    """Have a run expect more cells, or fewer, than its plan could know of."""
    run.planned = None if run.planned is None else run.planned + more


def measure_further(plan: Plan, run: Run, command: str) -> list[str]:
    """Measure further seeds of the cells of which a factor is undecided, until none is or the plan has no more."""
    faults = list[str]()
    for number, cells in enumerate(plan.further, len(plan.parts) + len(plan.points)):
        from stepscale.bench.analysis.factors import undecided  # scipy.stats: not before the first cell

        open_ = undecided(tables.cells_of(run.records.values(), Task.TIME))
        wanted = [words for words in cells if open_ and _place(words) in open_]
        if not wanted:
            break
        run.tell(f"undecided yet are {len(wanted)} cells: another seed of them")
        _expect(run, len(wanted))
        faults += measure_part(wanted, number, run, command, looks(plan))[1]
    return faults


def looks(plan: Plan) -> int:
    """Return how often the plan asks whether enough seeds are there.

    Whoever looks several times, and stops when a difference shows, finds one too often: the error is spent over all.
    """
    return 1 + len(plan.further)


def _place(words: Words) -> tuple[object, ...]:
    """Return what a cell is of, as ``undecided`` tells it."""
    job = describe(compose_cell(words), "", Path())
    axes = msgspec.structs.asdict(job.cell) | {"machine": job.machine.name}
    return tuple(axes[axis] for axis in (*GROUP, "dim", "optimizer"))


def measure_part(
    cells: list[Words], number: int, run: Run, command: str, looks: int = 1, tuned: Tuning | None = None
) -> tuple[list[Record], list[str]]:
    """Measure the cells of one part; return their records, and what could not be described.

    Cells that follow each other and differ in their optimizer alone are measured in turns.
    """
    records, faults = [], list[str]()
    with measuring_part(run.path, number, run.tell):
        for _, group in itertools.groupby(_described(cells, run, command, faults), key=compared):
            while jobs := list(itertools.islice(group, TOGETHER)):
                records += run.measure([dataclasses.replace(job, looks=looks, tuning=tuned) for job in jobs])
    return records, faults


def _described(cells: list[Words], run: Run, command: str, faults: list[str]) -> Iterator[Job]:
    for words in cells:
        try:
            yield describe(compose_cell(words), command, run.path)
        except UsageError as error:
            faults.append(str(error))


def compared(job: Job) -> object:
    """Return what cells share that are measured in turns; of training each is alone."""
    own = job.identity if job.task is Task.TRAIN else ""
    return msgspec.structs.replace(job.cell, optimizer=""), own


def describe(composed: CellConfig, command: str, folder: Path) -> Job:
    """Turn a composed cell into a job, checking what depends on the machine.

    Raises:
        UsageError: a value is out of range; the message names it and what was expected.
    """
    config = composed.config
    for name, allowed in (("dtype", DTYPES), ("task", tuple(Task))):
        if config[name] not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {config[name]!r}")
    try:
        SETTINGS[Task(config["task"])](**config[OWN[Task(config["task"])]])
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    device = choose_device(str(config["device"]))
    require_present(device)
    if config["dtype"] == TF32 and device != "cuda":
        raise UsageError(f"dtype={TF32} is a mode of CUDA devices, this cell's device is {device}; use dtype=float32")
    whole: Config = {name: config[name] for name in ("dim", "batch", "depth", "dtype", "seed")}
    threads = cores.threads_for(config["threads"], alone=config["task"] == Task.TIME)
    cell = Cell(**whole | composed.names, device=device, threads=threads)
    machine = description.machine(device)
    own = sources(config)
    versions = [code_version.code_hash(), str(torch.__version__), *own]
    job = Job(
        identity=identity(cell, config, machine, versions, composed.variables),
        cell=cell,
        config=config,
        machine=machine,
        command=command,
        folder=folder.absolute(),  # a user's code may go to another
        sources=own,
        variables=composed.variables,
    )
    if job.task is Task.TRAIN:
        return job
    log_name = identity(msgspec.structs.replace(cell, seed=0), config, machine, versions, composed.variables)
    return dataclasses.replace(job, log_name=log_name, nearby=_nearby(composed, cell.dim))


def _nearby(composed: CellConfig, dim: int) -> dict[int, Config]:
    """Return a cell's configuration at the other dims at which its operations may be logged."""
    found = {}
    for other in (SMALL, *second_dims(dim)):
        with suppress(UsageError):
            found[other] = composed.at(other)
    return found
