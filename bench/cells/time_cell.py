"""A step, timed in this process, and its operations logged in another."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stepscale.bench.cells.build import build, load_data, moved, number_type, rows_of_batch
from stepscale.bench.cells.job import Job
from stepscale.bench.counting.products import products_of
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import memory
from stepscale.bench.machine.clock import clock_of
from stepscale.bench.notes import Notes
from stepscale.bench.records.headline import limit_fault
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import Record
from stepscale.bench.timing.gradient_cosine import agreement
from stepscale.bench.timing.limit import limit_of
from stepscale.bench.timing.log_period import log_growth
from stepscale.bench.timing.time_step import Settings, measure
from stepscale.bench.timing.workload import Workload
from stepscale.models import Batch, each, rows_of

BATCHES = 3  # rotated, so that no step finds its batch in the cache


def log_cell(job: Job, device: torch.device) -> StepLog:
    """Log the operations of a cell's step, at its dim and at one nearby, and the products of its model's loss.

    What cannot be logged is noted.
    """
    settings, notes = Settings(**job.config["timing"]), Notes()
    log = StepLog(notes=notes)

    def make(dim: int) -> Workload:
        torch.manual_seed(job.cell.seed)
        there = job.at(dim)
        batches, _ = batches_of(there, device)
        return Workload(*build(there, device, number_type(job.cell.dtype)), batches)

    workload = make(job.cell.dim)
    log.products = products_of(workload.model, workload.batches[0], notes)
    with notes.optional("counts"):
        log.period = log_growth(make, job.cell.dim, settings.max_step_s, notes)
    return log


def time_cell(job: Job, device: torch.device, record: Record, turn: Callable[[], None]) -> None:
    """Time a step: fill the record's ``timing``, ``counts``, ``memory`` and ``direction``."""
    record.notes = notes = Notes(job.log.notes)
    batches, record.data_note = batches_of(job, device)
    peak_memory = memory.start_peak_memory(device)
    settings = Settings(**job.config["timing"])
    workload = Workload(*build(job, device, number_type(job.cell.dtype)), batches, settings.compile)
    if device.type == "cuda":  # there the model was made at a higher peak than a step may have
        torch.cuda.reset_peak_memory_stats(device)
    limit = lambda: limit_of(workload.model, job.cell.batch, job.log.products, job.log.period, notes)  # noqa: E731
    clock = clock_of(device, job.cell.threads)
    record.timing, record.counts, record.memory = measure(
        workload, limit, clock, settings, peak_memory, notes, job.log.period, turn
    )
    record.timing.turns = job.turns
    if fault := limit_fault(record.timing.blocks):
        notes.setdefault("limit", fault)
    record.direction = agreement(workload, job.cell.dim, notes)


def batches_of(job: Job, device: torch.device) -> tuple[list[Batch], str | None]:
    """Return a few batches of a cell's data on its device, and what is to be noted of the data."""
    data = load_data(job, BATCHES * job.cell.batch)
    rows, size = moved(data.train, device, number_type(job.cell.dtype)), rows_of_batch(data.train, job.cell.batch)
    if (there := rows_of(rows)) < BATCHES * size:
        raise UsageError(f"the data have {there} train rows, {BATCHES} batches have {BATCHES * size}: lower batch")
    cut = lambda k: each(rows, lambda part: part[k * size : (k + 1) * size])  # noqa: E731
    return [cut(k) for k in range(BATCHES)], data.note
