"""Steps of known cost on a simulated clock, and the records they leave: the truth the analysis is held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from stepscale.bench.cells.identity import identity
from stepscale.bench.notes import Notes
from stepscale.bench.records import store
from stepscale.bench.records.schema import (
    SCHEMA,
    Blocks,
    Cell,
    Counts,
    Environment,
    Machine,
    Memory,
    Record,
    Status,
    StepClass,
    Task,
    Timing,
)
from stepscale.bench.timing import time_step
from stepscale.bench.timing.log_period import log_here
from stepscale.bench.timing.time_step import Settings
from stepscale.bench.timing.workload import Workload
from stepscale.optimizers import Facts, Mark, no_mark

SETTINGS = Settings(precision=0.01, time_limit_s=0.5, warmup_s=0.1, block_s=0.01, max_step_s=10)
TIMED = {"task": "time", "timing": {"max_step_s": 2}}  # the part of a configuration that is read
RATE = 1e11  # FLOP/s of the simulated machine
Cost = Callable[[int], float]


class SimulatedClock:
    """A clock that only moves when a simulated step or limit says so; with relative noise of every move."""

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.now, self.noise, self.rng = 0.0, noise, np.random.default_rng(seed)

    def move(self, seconds: float) -> None:
        self.now += seconds * (1 + self.noise * self.rng.standard_normal())

    def stamp(self) -> float:
        return self.now

    def seconds(self, start: float, stop: float) -> float:
        return stop - start

    def synchronize(self) -> None:
        pass


class SimulatedStep:
    """Takes ``seconds[position]``; where that is more than the least, it also does other work (a matrix product)."""

    def __init__(self, clock: SimulatedClock, seconds: list[float]) -> None:
        self.clock, self.all_seconds, self.count = clock, seconds, 0
        self.facts = Facts(period=len(seconds))

    def __call__(self, batch: Any, mark: Mark = no_mark) -> None:
        seconds, cheapest = self.all_seconds[self.count % self.facts.period], min(self.all_seconds)
        self.clock.move(cheapest)
        mark("gradient")
        if seconds > cheapest:
            torch.mm(torch.ones(2, 2), torch.ones(2, 2))
            self.clock.move(seconds - cheapest)
            mark("inverse")
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class SimulatedLimit:
    def __init__(self, clock: SimulatedClock, seconds: float) -> None:
        self.clock, self.limit_s, self.flops = clock, seconds, seconds * RATE

    def run(self, times: int) -> None:
        self.clock.move(times * self.limit_s)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    seconds: list[float],
    limit_s: float | None = 1e-3,
    clock: SimulatedClock | None = None,
    settings: Settings = SETTINGS,
) -> time_step.Measured:
    """Measure a simulated step with the real timing code; the host's time is the simulated one too."""
    clock = clock or SimulatedClock()
    monkeypatch.setattr(time_step.time, "perf_counter", clock.stamp)
    workload = Workload(nn.Linear(1, 1), SimulatedStep(clock, seconds), [torch.zeros(1, 1)])
    copy = Workload(nn.Linear(1, 1), SimulatedStep(SimulatedClock(), seconds), [torch.zeros(1, 1)])
    log = log_here(copy, Notes())
    return time_step.measure(
        workload,
        lambda: None if limit_s is None else SimulatedLimit(clock, limit_s),  # type: ignore[arg-type, return-value]
        clock,
        settings,
        lambda: Memory(peak_mib=1.0, read_from="nothing"),
        Notes(),
        log,
    )


MACHINE = Machine(cpu="simulated", cores=2)
ENVIRONMENT = Environment(code="made", torch="0", python="0", threads=2, stepscale="0")


def cell(optimizer: str, dim: int, seed: int, **axes: Any) -> Cell:
    base = {"model": "flow", "data": "photos", "batch": 100, "depth": 2, "dtype": "float32", "device": "cpu"}
    return Cell(**{**base, "threads": 2, "optimizer": optimizer, "dim": dim, "seed": seed, **axes})


def limit_seconds(dim: int) -> float:
    return 2 * 7 * 100 * dim**2 / RATE


def record(optimizer: str, dim: int, seed: int, step_s: float, **axes: Any) -> Record:
    """Make a whole record of a cell whose step took ``step_s``, without measuring anything."""
    limit_s = limit_seconds(dim)
    made = bare(cell(optimizer, dim, seed, **axes), deepcopy(TIMED))
    blocks = Blocks([1] * 6, [step_s] * 6, [step_s] * 6, [limit_s] * 6, [0.0] * 6)
    trace = [StepClass([0], 1.0, 10, {"gradient": step_s * 0.9, "update": step_s * 0.1})]
    made.timing = Timing(
        first_step_s=step_s, warmup_s=0.1, composed=False, stopped_by="precision", blocks=blocks, trace=trace
    )
    made.counts = Counts(
        flops=step_s * RATE, operations=10, synchronisations=0, uncounted=[], limit_flops=limit_s * RATE
    )
    made.memory = Memory(peak_mib=dim / 10, read_from="made")
    made.status = Status.OK
    return made


def bare(of: Cell, config: dict[str, Any]) -> Record:
    """Make a record without figures."""
    return Record(
        schema=SCHEMA,
        task=Task(config["task"]),
        identity=identity(of, config, MACHINE, ["code", "torch"], {}),
        status=Status.FAILED,
        cell=of,
        config=config,
        command="made",
        finished="2026-01-01T00:00:00+00:00",
        machine=MACHINE,
        environment=ENVIRONMENT,
    )


def failed(optimizer: str, dim: int, seed: int, status: str, **axes: Any) -> Record:
    made = bare(cell(optimizer, dim, seed, **axes), deepcopy(TIMED))
    return replace(made, status=Status(status), reason=f"simulated {status}")


def run_of(
    folder: Path,
    costs: dict[str, Cost],
    dims: list[int],
    seeds: int = 2,
    noise: float | Cost = 0.005,
    rng: np.random.Generator | None = None,
    **axes: Any,
) -> Path:
    """Write a run's records: each process's step time off by a relative ``noise``, which may depend on the dim."""
    rng = rng or np.random.default_rng(7)
    for name, cost in costs.items():
        for dim in dims:
            sd = noise(dim) if callable(noise) else noise
            for seed in range(seeds):
                step_s = cost(dim) * float(np.exp(sd * rng.standard_normal()))
                store.save(record(name, dim, seed, step_s, **axes), folder)
    return folder


def polynomial(*coefficients: float) -> Cost:
    """Seconds at a dim: Σ c_k dᵏ in microseconds."""
    return lambda dim: 1e-6 * sum(c * dim**k for k, c in enumerate(coefficients))


DIMS = [64, 96, 128, 192, 256, 384, 512, 768, 1024]
COSTS = {
    "quadratic": polynomial(20, 0, 2e-2),
    "cubic": polynomial(150, 0.35, 1.5e-2, 6e-5),
    "mixed": polynomial(100, 0, 2e-2, 4e-6),  # 17 % of its step at dim 1024 is cubic
    "periodic": lambda d: polynomial(50, 0, 2e-2)(d) + polynomial(0, 0, 0, 4e-4)(d) / 10,  # an inverse every 10 steps
}


def falling(dim: int) -> float:
    """Noise as it was seen, but stronger: a seventh at small dims, a fiftieth at large ones."""
    return 0.02 + 0.2 * math.exp(-dim / 60)
