"""Step benchmarks for pytest-benchmark: ``python -m pytest bench/regression/benchmarks``.

``--benchmark-json=steps.json`` keeps what it found.

Each round is a whole number of periods, restored to the same state; the limit is timed between them, and
``extra_info`` holds the ratio of the medians. Rounds are short, so that sessions of two versions of the code can
take turns (``make regress``) faster than the machine's speed drifts.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from hydra.utils import instantiate
from pytest_benchmark.fixture import BenchmarkFixture

from stepscale.bench.config import compose_cell
from stepscale.bench.machine import code_version
from stepscale.bench.machine.clock import Clock, clock_of, timed
from stepscale.bench.timing.limit import Limit, limit_of
from stepscale.bench.timing.workload import Workload
from stepscale.models import rows_of
from stepscale.optimizers import Step, no_mark

from .conftest import Turn
from .messages import Plan

ROUND_S = 0.008  # of steps
STEPS_S = 0.5  # in all rounds
LEAST_ROUNDS, WARM_UP = 12, 2
LIMIT_EVERY = 4  # rounds
NUMBERS = {"float32": torch.float32, "tf32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def workload_of(words: list[str], slow: Callable[[Step], Step]) -> Workload:
    """Three batches of a cell's data, in turns; numbers and compilation are as its configuration says."""
    config = compose_cell(words).config
    tf32 = config["dtype"] == "tf32"
    if tf32 and DEVICE.type != "cuda":
        raise ValueError("dtype=tf32 is a mode of CUDA devices; use dtype=float32")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    dtype, compile_mode = NUMBERS[config["dtype"]], config["timing"].get("compile")
    torch.set_flush_denormal(config.get("flush_denormal", True))  # an earlier version has no such key
    torch.manual_seed(0)
    size, dim = config["batch"], config["data"].get("dim", config["dim"])  # an earlier version has no data.dim
    rows = instantiate(config["data"])(dim=dim, rows=3 * size, seed=config["seed"]).train
    parts = [rows] if isinstance(rows, torch.Tensor) else rows
    if len(parts) > 1 and not parts[1].is_floating_point():
        size //= parts[1][0].numel()  # of a text a batch counts tokens
    parts = [part[: 3 * size].to(DEVICE, dtype if part.is_floating_point() else part.dtype) for part in parts]
    batches = list(zip(*(part.split(size) for part in parts), strict=True))
    model = instantiate(config["model"]).to(device=DEVICE, dtype=dtype)
    step = slow(instantiate(config["optimizer"])(model))
    workload = Workload(model, step, [batch[0] if len(batch) == 1 else batch for batch in batches], compile_mode)
    if compile_mode:  # one period as written makes .grad and state: torch would compile anew for them
        workload.run(workload.period, no_mark)
    return workload


def calibrate(workload: Workload, limit: Limit | None, clock: Clock) -> Plan:
    step_s = min(timed(clock, workload.run, workload.period) for _ in range(3)) / workload.period
    limit_s = min(timed(clock, limit.run, 1) for _ in range(3)) if limit else math.inf
    steps = workload.whole_periods(ROUND_S / step_s)
    rounds = max(LEAST_ROUNDS, math.ceil(STEPS_S / (steps * step_s)))
    return Plan(steps, math.ceil(ROUND_S / 8 / limit_s), rounds)


def test_step(
    benchmark: BenchmarkFixture, turn: Turn, slow: Callable[[Step], Step], words: list[str], optimizer: str, dim: int
) -> None:
    turn(0)
    workload, clock = workload_of([f"optimizer={optimizer}", f"dim={dim}", *words], slow), clock_of(DEVICE)
    limit = limit_of(workload.model, rows_of(workload.batches[0]), None)  # of a model that names its products
    workload.run(workload.period)
    boundary = workload.snapshot()
    plan = turn(0, calibrate(workload, limit, clock))  # the same in every session
    assert plan is not None
    steps_s, limits_s, count = list[float](), list[float](), itertools.count()

    def prepare() -> None:
        turn(round_ := next(count))
        if limit and round_ % LIMIT_EVERY == 0:
            limit.run(1)  # finds the caches as another session left them
            clock.synchronize()
            limits_s.append(timed(clock, limit.run, plan.limit_runs) / plan.limit_runs)
        workload.restore(boundary)
        clock.synchronize()

    def round_() -> None:
        steps_s.append(timed(clock, workload.run, plan.steps) / plan.steps)

    gc.collect()
    gc.disable()  # a collection falls into one session's round and not into another's
    try:
        benchmark.pedantic(round_, setup=prepare, rounds=plan.rounds, warmup_rounds=WARM_UP)
    finally:
        gc.enable()
    step_s, limit_s = steps_s[WARM_UP:], float(np.median(limits_s)) if limits_s else math.nan
    benchmark.extra_info.update(
        optimizer=optimizer, dim=dim, steps=plan.steps, ratio=float(np.median(step_s)) / limit_s, limit_s=limit_s,
        first_round=WARM_UP, step_s=step_s, file=code_version.__file__, code=code_version.code_hash(),
    )  # fmt: skip
    assert workload.finite()
