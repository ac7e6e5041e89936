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
from stepscale.bench.config import CellConfig, Words, compose_cell
from stepscale.bench.counting.growth import second_dims
from stepscale.bench.errors import UsageError
from stepscale.bench.locks import measuring_part
from stepscale.bench.machine import code_version, cores, description
from stepscale.bench.machine.device import require_present
from stepscale.bench.records.schema import Config, Record, Task, Tuning
from stepscale.bench.runs import tuning
from stepscale.bench.runs.plan import Plan
from stepscale.bench.runs.recorded import Recorded, placed, wanted
from stepscale.bench.runs.run import Run
from stepscale.bench.timing import time_step
from stepscale.bench.timing.log_period import SMALL
from stepscale.bench.training import loop

Tell = Callable[[str], None]
SETTINGS: dict[Task, Callable[..., object]] = {Task.TIME: time_step.Settings, Task.TRAIN: loop.Settings}
TOGETHER = 24  # cells that are measured in turns: each is a process that keeps its memory


def conduct(plan: Plan, run: Run, command: str, only: Sequence[int] | None = None) -> list[str]:
    """Measure what is left of a plan, or of the parts ``only``; return what could not be, a sentence each.

    What one part finds reaches another by the run's folder alone, whichever process has measured it.

    Raises:
        KeyboardInterrupt: an interrupt came; what is measured is recorded.
        OSError: a record cannot be written.
    """
    faults, further = list(plan.faults), list[int]()
    for number in plan.numbers if only is None else only:
        if number < len(plan.parts):
            faults += measure_part(plan.parts[number], number, run, command, looks(plan))[1]
        elif number < len(plan.parts) + len(plan.points):
            faults += train_point(plan, number, run, command)
        else:
            further.append(number)
    return list(dict.fromkeys(faults + measure_further(plan, further, run, command)))


def train_point(plan: Plan, number: int, run: Run, command: str) -> list[str]:
    """Train a point as its trials chose, which the folder holds; return what could not be done."""
    point = plan.points[number - len(plan.parts)]
    short = list[Record]()
    if point.trials is not None:
        trials = plan.parts[point.trials]
        run.refresh()
        short = Recorded(run.records.values(), _machine(trials[0], run)).look(trials).found
        if lacking := len(trials) - len(short):
            told = f"{lacking} of the {len(trials)} trials of {' '.join(point.words)} are not recorded in {run.path}"
            return [f"{told}: measure part={point.trials} before part={number}"]
    expected = [plan.finalists(point)]

    def measure(cells: list[Words], final: bool, tuned: Tuning | None) -> tuple[list[Record], list[str]]:
        if not final:
            _expect(run, len(cells) - (expected.pop() if expected else 0))
        lock = number if final else number + len(plan.points)
        return measure_part(cells, lock, run, command, tuned=tuned)

    return tuning.try_and_train(point.words, short, plan.seeds, measure)


def _machine(words: Words, run: Run) -> str | None:
    """Name this machine as the place of a cell; None where that cannot be measured here."""
    with suppress(UsageError):
        return describe(compose_cell(words), "", run.path).machine.name
    return None


def _expect(run: Run, more: int) -> None:
    """Have a run expect more cells, or fewer, than its plan could know of."""
    run.planned = None if run.planned is None else run.planned + more


def measure_further(plan: Plan, numbers: Sequence[int], run: Run, command: str) -> list[str]:
    """Measure further seeds of the cells of which a factor is undecided, until none is or the plan has no more."""
    faults = list[str]()
    for number in numbers:
        cells = plan.further[number - len(plan.parts) - len(plan.points)]
        run.refresh()
        chosen = wanted(cells, run.records.values(), _machine(cells[0], run))
        if not chosen:
            break
        run.tell(f"undecided yet are {len(chosen)} cells: another seed of them")
        _expect(run, len(chosen))
        faults += measure_part(chosen, number, run, command, looks(plan))[1]
    return faults


def looks(plan: Plan) -> int:
    """Return how often the plan asks whether enough seeds are there.

    Whoever looks several times, and stops when a difference shows, finds one too often: the error is spent over all.
    """
    return 1 + len(plan.further)


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
    cell = placed(composed)
    require_present(cell.device)
    if config["dtype"] == TF32 and cell.device != "cuda":
        told = f"dtype={TF32} is a mode of CUDA devices, this cell's device is {cell.device}"
        raise UsageError(f"{told}; use dtype=float32")
    threads = cores.threads_for(config["threads"], alone=config["task"] == Task.TIME)
    cell = msgspec.structs.replace(cell, threads=threads)
    machine = description.machine(cell.device)
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
