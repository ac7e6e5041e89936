"""A model, trained in this process."""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from stepscale.bench.cells.build import build, load_data, moved, number_type, rows_of_batch
from stepscale.bench.cells.failures import fault_of_start
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.time_cell import BATCHES
from stepscale.bench.data.dataset import Dataset
from stepscale.bench.data.degenerate import faults
from stepscale.bench.errors import DivergedError, StoppedError
from stepscale.bench.machine import generators
from stepscale.bench.machine.clock import clock_of
from stepscale.bench.machine.other_processes import OtherCpu, idle_cores
from stepscale.bench.notes import Notes
from stepscale.bench.progress import bar
from stepscale.bench.records.schema import NO_BOUND, UNSCALED, DataFacts, Number, Record, Trained
from stepscale.bench.training import curvature, loop, samples, source_separation
from stepscale.bench.training.batches import Stream
from stepscale.bench.training.checkpoint import Checkpoint
from stepscale.bench.training.evaluation import SEED
from stepscale.bench.training.loop import Training
from stepscale.models import Batch, objective_of, rows_of

WARM_UP_S = 1.0  # of training: one step is enough of a slow optimizer


def train_cell(job: Job, device: torch.device, record: Record) -> None:
    """Train a model: fill the record's ``training`` and ``data``; its pictures lie in a file beside.

    Raises:
        DivergedError: it cannot be trained from where it starts.
        FloatingPointError: it diverged; what the curve holds up to there is in the record all the same.
    """
    settings, dtype = loop.Settings(**job.config["training"]), number_type(job.cell.dtype)
    notes = record.notes = Notes()
    data = load_data(job, settings.rows)
    record.data_note = data.note
    rows = data.train
    train, validation, held_out = (moved(split, device, dtype) for split in data.splits)
    data = data._replace(train=train, validation=validation, held_out=held_out)
    stream = Stream(data.train, rows_of_batch(data.train, job.cell.batch), job.cell.seed, settings.full_batch_at)
    _warm_up(job, stream, device, dtype)
    run = Training(*build(job, device, dtype), data, stream, settings)
    record.data = _facts(data, run.model)
    _warn(rows, run.model, notes, job)
    _refuse_start(run, notes)
    others = OtherCpu(idle_cores(device.type, torch.get_num_threads()))
    checkpoint = Checkpoint(job.checkpoint, run, notes)
    objective = objective_of(run.model)
    number = Number(objective.name, objective.unit, objective.exact)
    trained = Trained(stopped_by="error", curve=run.curve, steps=0, seconds=0.0, number=number)
    record.training = trained
    try:
        checkpoint.resume()
        trained.resumed_at = run.position
        ended = _trained(run, checkpoint, job, device)
        trained.final = run.final()
        trained.stopped_by = ended
    except FloatingPointError:
        trained.stopped_by = "divergence"
        raise
    except StoppedError:
        raise
    except BaseException:
        checkpoint.failed()
        raise
    finally:
        trained.curve, trained.steps, trained.seconds = run.curve, run.position, run.seconds
        trained.other_cores = others.cores()
    _look(run, job, trained, notes)


def _refuse_start(run: Training, notes: Notes) -> None:
    """Look at the model before any step.

    Raises:
        DivergedError: it cannot be trained from there.
    """
    fault = None
    with notes.optional("start"):
        fault = fault_of_start(run.model, run.stream.at(0))
    if fault is not None:
        raise DivergedError(fault)


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
    with bar(label) as show:

        def look() -> None:
            show(run.done(), f"step {run.position}, {run.curve.validation_nats[-1]:.2f} nats")
            checkpoint.look()

        return run.run(clock_of(device), look)


def _look(run: Training, job: Job, trained: Trained, notes: Notes) -> None:
    """Look at the trained model as it was judged: sources told apart, pictures, curvature. Not at a trial of tuning."""
    if run.settings.trial:
        return
    model = run.result()
    final = trained.final
    if final is not None and run.data.mixing is not None and job.cell.depth == 1:
        with notes.optional("source separation"):
            final.amari, final.fast_ica_amari = source_separation.distances(model, run.data)
    with notes.optional("pictures"), generators.kept(run.stream.device, SEED):
        arrays = samples.look(model, run.data, run.settings.pictures, notes)
        if arrays:
            samples.save(arrays, job.folder / "pictures" / f"{job.identity}.npz")
    if run.settings.curvature:
        with notes.optional("curvature"), generators.kept(run.stream.device, SEED):
            trained.curvature = curvature.look(model, run.data.train, run.settings.curvature)


def _facts(data: Dataset, model: nn.Module) -> DataFacts:
    """What the records say of the data; bits per dim and units only where the likelihood is of the rows themselves."""
    of_rows, rescaling = objective_of(model).of_rows, data.rescaling
    train, validation, held_out = map(rows_of, data.splits)
    facts = DataFacts(train=train, validation=validation, held_out=held_out, shape=data.shape)
    facts.bits_offset = data.bits_offset if of_rows else None
    if of_rows and rescaling:
        facts.scale, facts.shift = rescaling.scale, rescaling.shift.tolist()
    return facts


def _warn(train: Batch, model: nn.Module, notes: Notes, job: Job) -> None:
    """Note, and say, where the rows' likelihood has no upper bound or their columns want scaling, before training."""
    if not objective_of(model).of_rows or not isinstance(train, Tensor) or not train.is_floating_point():
        return
    with notes.optional("a look at the data"):
        found = faults(train)
        told = {NO_BOUND: found.unbounded, UNSCALED: found.unscaled}
        for what, reason in told.items():
            if reason is not None:
                notes[what] = reason
                if not job.config["training"]["trial"]:
                    sys.stderr.write(f"{job.cell.data}, dim {job.cell.dim}: without {what}: {reason}\n")
