"""Cells that would take too long, foretold from smaller ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec.structs import replace

from stepscale.bench.cells.job import Job
from stepscale.bench.machine import code_version
from stepscale.bench.records.headline import estimate
from stepscale.bench.records.schema import Record, Status, Task


def predict_too_slow(job: Job, records: Iterable[Record]) -> str | None:
    """Say why a step of the cell would take longer than allowed, or None.

    The time at the largest smaller dim is extrapolated by the growth of the FLOPs between the two largest. Only cells
    of the same code, method and machine are looked at, and of those that were too slow only those that had as long.
    """
    max_step_s = job.config["timing"]["max_step_s"]
    like = [record for record in records if _alike(record, job)]
    smaller = sorted((record for record in like if record.cell.dim < job.cell.dim), key=lambda record: record.cell.dim)
    if smaller and smaller[-1].status is Status.TOO_SLOW:
        if smaller[-1].config["timing"]["max_step_s"] >= max_step_s:
            return f"it is so already at dim {smaller[-1].cell.dim}: {smaller[-1].reason}"
        return None
    timed: dict[int, tuple[float, float]] = {}  # by dim: seconds a step and FLOPs
    for record in smaller:
        if record.timing and record.counts and record.counts.flops:
            now = estimate(record.timing.blocks)
            if not now.contended:
                timed[record.cell.dim] = now.step_s, record.counts.flops
    if len(timed) < 2:
        return None
    (first, (_, fewer)), (last, (step_s, flops)) = list(timed.items())[-2:]
    predicted = step_s * (job.cell.dim / last) ** (math.log(flops / fewer) / math.log(last / first))
    if predicted <= max_step_s:
        return None
    return f"predicted from dim {last}: {predicted:.3g} s a step; timing.max_step_s is {max_step_s:g}"


def _alike(record: Record, job: Job) -> bool:
    """Whether a record is of the job's method, code and machine: they differ in dim and seed alone."""
    if record.task is not Task.TIME or record.environment.code != code_version.code_hash():
        return False
    same_cell = replace(record.cell, dim=job.cell.dim, seed=job.cell.seed) == job.cell
    return same_cell and record.machine.name == job.machine.name and record.sources == job.sources
