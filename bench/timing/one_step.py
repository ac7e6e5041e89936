"""One step timed in this process, from a script or a notebook: no configuration, no record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from stepscale.bench.counting.operation_counts import compiled_here
from stepscale.bench.counting.products import products_of
from stepscale.bench.machine.clock import clock_of
from stepscale.bench.machine.memory import start_peak_memory
from stepscale.bench.notes import Notes
from stepscale.bench.records.headline import estimate
from stepscale.bench.timing.limit import limit_of
from stepscale.bench.timing.log_period import log_here
from stepscale.bench.timing.time_step import Measured, Settings, measure
from stepscale.bench.timing.workload import Workload
from stepscale.models import Batch, rows_of
from stepscale.optimizers import Step

DEFAULT = Settings(precision=0.01, time_limit_s=0.8, warmup_s=0.1, block_s=0.02, max_step_s=2)  # timing/default.yaml's


class StepTime(NamedTuple):
    """What a step takes: medians over blocks of whole periods, each followed by a block of the limit.

    Limit and ratio are NaN where no limit is known, as of a model without ``products`` beside compiled functions.
    """

    step_ms: float
    limit_ms: float
    ratio: float  # step / limit
    ratio_low: float  # ends of its 95 % interval, in this process
    ratio_high: float
    flops: float | None  # a step; None where it compiles itself, and counting would have it run as it is written
    operations: float | None  # a step
    peak_mib: float | None  # above what was there before the first step; None where the system does not tell
    contended: bool  # whether other processes used the machine meanwhile


def time_step(model: nn.Module, step: Step, batches: Sequence[Batch], settings: Settings = DEFAULT) -> StepTime:
    """Time a step of a model on a few batches in turn; model and step are left as they were. About a second.

    Other processes of the same code differ by more than this one's interval: ``stepscale -m … seed=0,1,2`` measures
    each cell in a process of its own.

    Example:
        >>> import torch
        >>> from stepscale.models import Flow
        >>> from stepscale.optimizers import Relative, pair
        >>> flow = Flow(dim=16)
        >>> step = pair(flow, Relative, lambda parameters: torch.optim.SGD(parameters, lr=1e-3))
        >>> time_step(flow, step, [torch.randn(100, 16) for _ in range(3)]).flops
        358400.0

    Args:
        model: a module with ``loss(batch)``.
        step: a step of that model, as ``pair`` makes one.
        batches: at least one, on the model's device; a few, so that no step finds its batch in the cache.
        settings: how long and how closely to measure.

    Raises:
        ValueError: there is no batch.
        TypeError: the step has no ``facts``.
        TooSlowError, DivergedError: as ``measure``.
    """
    if not batches:
        raise ValueError("batches must hold at least one batch, got none")
    workload = Workload(model, step, list(batches), settings.compile)
    gradients = [None if own.grad is None else own.grad.clone() for own in model.parameters()]
    before, device = workload.snapshot(), workload.device
    notes = Notes()
    clock, peak_memory = clock_of(device, torch.get_num_threads()), start_peak_memory(device)
    try:
        workload.run(workload.period)  # what compiles itself has done so now
        log = None if compiled_here() or settings.compile else log_here(workload, notes)
        # once the peak memory is taken, and not where it would have compiled functions run as they are written
        recorded = lambda: None if compiled_here() else products_of(model, batches[0], notes)  # noqa: E731
        limit = lambda: limit_of(model, rows_of(batches[0]), recorded(), log, notes)  # noqa: E731
        return _figures(measure(workload, limit, clock, settings, peak_memory, notes, log))
    finally:
        workload.compiled = None  # whose state is never put back, as it is compiled for its own tensors
        workload.restore(before)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient


def _figures(found: Measured) -> StepTime:
    headline = estimate(found.timing.blocks)
    return StepTime(
        step_ms=1e3 * headline.step_s,
        limit_ms=1e3 * headline.limit_s,
        ratio=headline.ratio,
        ratio_low=headline.ratio_low,
        ratio_high=headline.ratio_high,
        flops=found.counts.flops if found.counts else None,
        operations=found.counts.operations if found.counts else None,
        peak_mib=found.memory.peak_mib,
        contended=headline.contended,
    )
