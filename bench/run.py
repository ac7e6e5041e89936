"""A job -> a record: a step timed, or a model trained, in this process."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from torch import nn
from tqdm import tqdm

from stepscale.bench import environment, pictures, separation, training
from stepscale.bench.agreement import agreement
from stepscale.bench.checkpoint import Checkpoint
from stepscale.bench.clock import clock_of
from stepscale.bench.contention import OtherCpu, idle_cores
from stepscale.bench.data import Dataset
from stepscale.bench.errors import DivergedError, StoppedError, TooSlowError, UsageError
from stepscale.bench.job import Job, build, load_data, number_type
from stepscale.bench.limit import limit_of
from stepscale.bench.notes import Notes, one_line
from stepscale.bench.schema import DataFacts, Final, Number, Record, Status, Task, Trained
from stepscale.bench.timing import Settings, measure
from stepscale.bench.training import Stream, Training
from stepscale.bench.workload import Workload
from stepscale.models import Batch, each, objective_of, rows_of

BATCHES = 3  # rotated, so that no step finds its batch in the cache
WARM_UP_S = 1.0  # of training: one step is enough of a slow optimizer
SPLITS = ("train", "validation", "held_out")
OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
)


def measure_cell(job: Job) -> Record:
    """Measure a cell in this process; whatever goes wrong is the record's status and reason.

    Raises:
        StoppedError: the process was asked to end, and there is no result.
    """
    record = job.record(Status.FAILED, None, environment.bare())
    try:
        device = torch.device(job.cell.device)
        number_type(job.cell.dtype)  # sets how products round, which the environment's description says
        record.environment = environment.describe()
        refuse_wrong_threads(job.cell.threads)
        environment.limit_memory(job.config["memory_gib"], device)
        torch.manual_seed(job.cell.seed)
        TASKS[job.task](job, device, record)
    except StoppedError:
        raise
    except BaseException as error:  # also what a user's code ends a process by
        record.status, record.reason = classify(error)
        record.traceback = traceback.format_exc() if record.status is Status.FAILED else None
    else:
        record.status = Status.OK
    return record


def refuse_wrong_threads(asked: int) -> None:
    """See that torch has the threads asked for, and that nothing makes it wrong.

    Raises:
        RuntimeError: it has not, or something does.
    """
    if torch.get_num_threads() != asked:
        raise RuntimeError(
            f"torch has {torch.get_num_threads()} threads, {asked} were asked for; MKL gives no more "
            "than the machine has real cores: set threads (or OMP_NUM_THREADS) to those"
        )
    if os.environ.get("MKL_DYNAMIC", "").lower() in ("false", "0"):
        raise RuntimeError("MKL_DYNAMIC=FALSE makes torch's batched LU on CPU silently wrong: unset it")


def time_cell(job: Job, device: torch.device, record: Record) -> None:
    """Time a step: fill the record's ``timing``, ``counts``, ``memory`` and ``direction``."""
    dtype, notes = number_type(job.cell.dtype), Notes()
    record.notes = notes
    data = load_data(job, BATCHES * job.cell.batch)
    record.data_note = data.note
    rows, size = moved(data.train, device, dtype), job.cell.batch
    batches = [each(rows, lambda part, k=k: part[k * size : (k + 1) * size]) for k in range(BATCHES)]  # type: ignore[misc]
    peak_memory = environment.start_peak_memory(device)
    settings = Settings(**job.config["timing"])
    workload = Workload(*build(job, device, dtype), batches, settings.compile)  # type: ignore[arg-type]
    if device.type == "cuda":  # there the model was made at a higher peak than a step may have
        torch.cuda.reset_peak_memory_stats(device)
    limit = lambda: limit_of(workload.model, batches[0], job.cell.dim)  # noqa: E731
    record.timing, record.counts, record.memory = measure(
        workload, limit, clock_of(device), settings, peak_memory, notes
    )
    record.direction = agreement(workload, job.cell.dim, notes)


def train_cell(job: Job, device: torch.device, record: Record) -> None:
    """Train a model: fill the record's ``training`` and ``data``; its pictures lie in a file beside.

    Raises:
        FloatingPointError: it diverged; what the curve holds up to there is in the record all the same.
    """
    settings, dtype = training.Settings(**job.config["training"]), number_type(job.cell.dtype)
    notes = record.notes = Notes()
    data = load_data(job, settings.rows)
    record.data_note = data.note
    train, validation, held_out = (moved(getattr(data, name), device, dtype) for name in SPLITS)
    data = data._replace(train=train, validation=validation, held_out=held_out)
    stream = Stream(data.train, job.cell.batch, job.cell.seed)
    _warm_up(job, stream, device, dtype)
    run = Training(*build(job, device, dtype), data, stream, settings)
    record.data = _facts(data, run.model)
    others = OtherCpu(idle_cores(device.type, torch.get_num_threads()))
    checkpoint = Checkpoint(job.checkpoint, run, notes)
    objective = objective_of(run.model)
    number = Number(objective.name, objective.unit, objective.exact)
    trained = Trained(stopped_by="divergence", curve=run.curve, steps=0, seconds=0.0, number=number)
    record.training = trained
    try:
        checkpoint.resume()
        trained.resumed_at = run.position
        trained.stopped_by = _trained(run, checkpoint, job, device)
        trained.final = run.final()
    finally:
        trained.curve, trained.steps, trained.seconds = run.curve, run.position, run.seconds
        trained.other_cores = others.cores()
    _look(run, job, trained.final, notes)


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Bring a batch to a device, and its numbers, but no labels, to a type."""
    return each(batch, lambda part: part.to(device=device, dtype=dtype if part.is_floating_point() else None))


TASKS = {Task.TIME: time_cell, Task.TRAIN: train_cell}


def _warm_up(job: Job, stream: Stream, device: torch.device, dtype: torch.dtype) -> None:
    """Spend what the first steps of a process cost on a step that is thrown away."""
    _, step = build(job, device, dtype)
    begun = time.monotonic()
    try:
        for position in range(BATCHES):
            if time.monotonic() - begun < WARM_UP_S:
                step(stream.at(position))
    except FloatingPointError:
        pass  # the run itself will meet it, and say so
    torch.manual_seed(job.cell.seed)


def _trained(run: Training, checkpoint: Checkpoint, job: Job, device: torch.device) -> str:
    """Train to the end, saving and showing how far it is; return what ended it."""
    label = f"{job.cell.optimizer}, {job.cell.data}, dim {job.cell.dim}, seed {job.cell.seed}"
    with _progress(run, label) as show:

        def look() -> None:
            show()
            checkpoint.look()

        return run.run(clock_of(device), look)


def _look(run: Training, job: Job, final: Final, notes: Notes) -> None:
    """Look at the trained model: sources told apart, pictures. A trial of tuning is not looked at."""
    if run.settings.trial:
        return
    if run.data.mixing is not None and job.cell.depth == 1:
        with notes.optional("source separation"):
            final.amari, final.fast_ica_amari = separation.distances(run.model, run.data)
    with notes.optional("pictures"):
        arrays = pictures.look(run.model, run.data, run.settings.pictures, notes)
        if arrays:
            pictures.save(arrays, job.folder / "pictures" / f"{job.identity}.npz")


@contextmanager
def _progress(run: Training, label: str) -> Iterator[Any]:
    """Show a bar, where there is a terminal: how far, the likelihood, and the time left."""
    shape = "{desc} {percentage:3.0f}% |{bar:20}| {elapsed} < {remaining}{postfix}"
    with tqdm(total=100, initial=run.done(), desc=label, leave=False, disable=None, bar_format=shape) as bar:

        def show() -> None:
            bar.set_postfix_str(f"step {run.position}, {run.curve.validation_nats[-1]:.2f} nats", refresh=False)
            bar.update(run.done() - bar.n)

        yield show


def _facts(data: Dataset, model: nn.Module) -> DataFacts:
    """What the records say of the data; bits per dim only where the likelihood is of the rows themselves."""
    bits = None if objective_of(model).of_targets else data.bits_offset
    train, validation, held_out = (rows_of(getattr(data, name)) for name in SPLITS)
    return DataFacts(train=train, validation=validation, held_out=held_out, shape=data.shape, bits_offset=bits)


def classify(error: BaseException) -> tuple[Status, str]:
    """Return the status and the reason that an exception gives a cell."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:  # Hydra's names the target alone
        error = error.__cause__
    reason = one_line(error)
    own_words = reason.removeprefix(f"{type(error).__name__}: ")
    if isinstance(error, DivergedError | FloatingPointError):  # the latter from a direction that met a NaN
        return Status.DIVERGED, own_words
    if isinstance(error, TooSlowError):
        return Status.TOO_SLOW, own_words
    if isinstance(error, UsageError):
        return Status.FAILED, own_words
    words = reason.lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words_ in words for words_ in OUT_OF_MEMORY):
        return Status.OUT_OF_MEMORY, reason
    return Status.FAILED, reason
