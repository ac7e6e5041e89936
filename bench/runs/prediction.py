"""Cells that would take too long, foretold from smaller ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec.structs import replace

from stepscale.bench.records.headline import estimate
from stepscale.bench.records.schema import Cell, Machine, Record, Status, Task


def predict_too_slow(cell: Cell, machine: Machine, records: Iterable[Record], max_step_s: float) -> str | None:
    """Say why a step of the cell would take longer than allowed, or None.

    The time at the largest smaller dim is extrapolated by the growth of the FLOPs between the two largest.
    """
    like = [r for r in records if r.task is Task.TIME and r.machine.name == machine.name and _alike(r.cell, cell)]
    smaller = sorted((record for record in like if record.cell.dim < cell.dim), key=lambda record: record.cell.dim)
    if smaller and smaller[-1].status is Status.TOO_SLOW:
        return f"it is so already at dim {smaller[-1].cell.dim}: {smaller[-1].reason}"
    timed: dict[int, tuple[float, float]] = {}  # by dim: seconds a step and FLOPs
    for record in smaller:
        if record.timing and record.counts and record.counts.flops:
            now = estimate(record.timing.blocks)
            if not now.contended:
                timed[record.cell.dim] = now.step_s, record.counts.flops
    if len(timed) < 2:
        return None
    (first, (_, fewer)), (last, (step_s, flops)) = list(timed.items())[-2:]
    predicted = step_s * (cell.dim / last) ** (math.log(flops / fewer) / math.log(last / first))
    if predicted <= max_step_s:
        return None
    return f"predicted from dim {last}: {predicted:.3g} s a step; timing.max_step_s is {max_step_s:g}"


def _alike(one: Cell, other: Cell) -> bool:
    """Whether two cells are of one optimizer and differ in dim and seed alone."""
    return replace(one, dim=other.dim, seed=other.seed) == other
