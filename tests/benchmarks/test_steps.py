"""Step benchmarks for pytest-benchmark: ``python -m pytest tests/benchmarks --benchmark-json=steps.json``.

Each round is a whole number of periods, restored to the same state; before each, outside its time, the limit is timed,
and ``extra_info`` holds the median ratio of the pairs. Figures of two runs may be compared only as these ratios.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import stepscale.bench.run
from stepscale.bench import environment
from stepscale.bench.clock import clock_of
from stepscale.bench.limit import Limit, products_of
from stepscale.bench.workload import Workload

CONF = Path(stepscale.bench.run.__file__).parent / "conf"
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
DIMS = {"naive": (32, 128)}
ROUNDS, WARM_UP, ROUND_S = 20, 3, 0.02
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def workload_of(optimizer: str, dim: int) -> Workload:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"optimizer={optimizer}", f"dim={dim}"])
    torch.manual_seed(0)
    rows = instantiate(cfg.data)(dim=dim, rows=300, seed=0).train.to(DEVICE)
    model = instantiate(cfg.model).to(DEVICE)
    return Workload(model, instantiate(cfg.optimizer)(model), list(rows.split(100)))


@pytest.mark.parametrize(("optimizer", "dim"), [(o, d) for o in OPTIMIZERS for d in DIMS.get(o, (128, 512))])
def test_step(benchmark: Any, optimizer: str, dim: int) -> None:
    workload, clock = workload_of(optimizer, dim), clock_of(DEVICE)
    limit = Limit(workload.model, products_of(workload.model, workload.batches[0], dim), DEVICE, torch.float32)
    workload.run(workload.period)
    boundary, limits = workload.snapshot(), []

    def seconds(run: Any, times: int) -> float:
        clock.synchronize()
        start = time.perf_counter()
        run(times)
        clock.synchronize()
        return (time.perf_counter() - start) / times

    steps = workload.period * math.ceil(ROUND_S / (workload.period * seconds(workload.run, workload.period)))
    runs = math.ceil(ROUND_S / 2 / min(seconds(limit.run, 3) for _ in range(3)))

    def prepare() -> None:
        limits.append(seconds(limit.run, runs))
        workload.restore(boundary)
        clock.synchronize()

    def round_() -> None:
        workload.run(steps)
        clock.synchronize()

    benchmark.pedantic(round_, setup=prepare, rounds=ROUNDS, warmup_rounds=WARM_UP)
    ratios = np.array(benchmark.stats.stats.data) / steps / np.array(limits[-ROUNDS:])
    benchmark.extra_info.update(
        optimizer=optimizer, dim=dim, steps=steps, ratio=float(np.median(ratios)), limit_s=float(np.median(limits)),
        file=stepscale.bench.run.__file__, code=environment.code_hash(), commit=environment.commit(),
    )  # fmt: skip
    assert workload.finite()
