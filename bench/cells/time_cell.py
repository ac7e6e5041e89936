"""A step, timed in this process."""

from __future__ import annotations

import torch

from stepscale.bench.cells.build import build, load_data, moved, number_type
from stepscale.bench.cells.job import Job
from stepscale.bench.machine import memory
from stepscale.bench.machine.clock import clock_of
from stepscale.bench.notes import Notes
from stepscale.bench.records.headline import limit_fault
from stepscale.bench.records.schema import Record
from stepscale.bench.timing.gradient_cosine import agreement
from stepscale.bench.timing.limit import limit_of
from stepscale.bench.timing.products import recorded_here
from stepscale.bench.timing.time_step import Settings, measure
from stepscale.bench.timing.workload import Workload
from stepscale.models import each

BATCHES = 3  # rotated, so that no step finds its batch in the cache


def time_cell(job: Job, device: torch.device, record: Record) -> None:
    """Time a step: fill the record's ``timing``, ``counts``, ``memory`` and ``direction``."""
    dtype, notes = number_type(job.cell.dtype), Notes()
    record.notes = notes
    data = load_data(job, BATCHES * job.cell.batch)
    record.data_note = data.note
    rows, size = moved(data.train, device, dtype), job.cell.batch
    batches = [each(rows, lambda part, k=k: part[k * size : (k + 1) * size]) for k in range(BATCHES)]  # type: ignore[misc]
    peak_memory = memory.start_peak_memory(device)
    settings = Settings(**job.config["timing"])
    workload = Workload(*build(job, device, dtype), batches, settings.compile)  # type: ignore[arg-type]
    if device.type == "cuda":  # there the model was made at a higher peak than a step may have
        torch.cuda.reset_peak_memory_stats(device)
    limit = lambda: limit_of(workload.model, size, recorded_here(workload.model, batches[0], notes))  # noqa: E731
    record.timing, record.counts, record.memory = measure(
        workload, limit, clock_of(device), settings, peak_memory, notes
    )
    if fault := limit_fault(record.timing.blocks):
        notes.setdefault("limit", fault)
    record.direction = agreement(workload, job.cell.dim, notes)
