"""Step benchmarks for pytest-benchmark: ``python -m pytest tests/benchmarks --benchmark-json=steps.json``.

Each round is a whole number of periods, restored to the same state; the limit is timed between them, and
``extra_info`` holds the ratio of the medians. Rounds are short, so that sessions of two versions of the code can
take turns (``make regress``) faster than the machine's speed drifts.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from stepscale.bench.machine import code_version
from stepscale.bench.machine.clock import Clock, clock_of
from stepscale.bench.timing.limit import Limit, products_of
from stepscale.bench.timing.workload import Workload
from stepscale.optimizers import Step

from .conftest import CONF, Agree

ROUND_S = 0.008  # of steps
STEPS_S = 0.5  # in all rounds
LEAST_ROUNDS, WARM_UP = 12, 2
LIMIT_EVERY = 4  # rounds
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def workload_of(optimizer: str, dim: int, slow: Callable[[Step], Step]) -> Workload:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"optimizer={optimizer}", f"dim={dim}"])
    torch.manual_seed(0)
    rows = instantiate(cfg.data)(dim=dim, rows=300, seed=0).train.to(DEVICE)
    model = instantiate(cfg.model).to(DEVICE)
    return Workload(model, slow(instantiate(cfg.optimizer)(model)), list(rows.split(100)))


def calibrate(workload: Workload, limit: Limit, clock: Clock) -> tuple[int, int, int]:
    """Steps a round, runs of the limit, rounds."""
    step_s = min(seconds(clock, workload.run, workload.period) for _ in range(3)) / workload.period
    limit_s = min(seconds(clock, limit.run, 1) for _ in range(3))
    steps = workload.whole_periods(ROUND_S / step_s)
    rounds = max(LEAST_ROUNDS, math.ceil(STEPS_S / (steps * step_s)))
    return steps, math.ceil(ROUND_S / 8 / limit_s), rounds


def seconds(clock: Clock, run: Callable[[int], None], times: int) -> float:
    clock.synchronize()
    start = time.perf_counter()
    run(times)
    clock.synchronize()
    return time.perf_counter() - start


def test_step(benchmark: Any, turn: Agree, slow: Callable[[Step], Step], optimizer: str, dim: int) -> None:
    turn(0)
    workload, clock = workload_of(optimizer, dim, slow), clock_of(DEVICE)
    limit = Limit(workload.model, products_of(workload.model, workload.batches[0], dim), DEVICE, torch.float32)
    workload.run(workload.period)
    boundary = workload.snapshot()
    steps, runs, rounds = turn(0, calibrate(workload, limit, clock))  # the same in every session
    limits, count = list[float](), itertools.count()

    def prepare() -> None:
        turn(round_ := next(count))
        if round_ % LIMIT_EVERY == 0:
            limit.run(1)  # finds the caches as another session left them
            limits.append(seconds(clock, limit.run, runs) / runs)
        workload.restore(boundary)
        clock.synchronize()

    def round_() -> None:
        workload.run(steps)
        clock.synchronize()

    gc.collect()
    gc.disable()  # a collection falls into one session's round and not into another's
    try:
        benchmark.pedantic(round_, setup=prepare, rounds=rounds, warmup_rounds=WARM_UP)
    finally:
        gc.enable()
    step_s, limit_s = np.array(benchmark.stats.stats.data) / steps, float(np.median(limits))
    benchmark.extra_info.update(
        optimizer=optimizer, dim=dim, steps=steps, ratio=float(np.median(step_s)) / limit_s, limit_s=limit_s,
        first_round=WARM_UP, step_s=step_s.tolist(), file=code_version.__file__, code=code_version.code_hash(),
    )  # fmt: skip
    assert workload.finite()
