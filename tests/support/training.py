"""Training runs: real ones of seconds, and records of made-up curves whose truth is known."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stepscale.bench.cells.job import Job
from stepscale.bench.data import photographs
from stepscale.bench.records.schema import Curve, DataFacts, Final, Record, Status, Trained
from stepscale.bench.training.batches import Stream
from stepscale.bench.training.loop import Settings, Training
from stepscale.models import Flow
from stepscale.optimizers import Layerwise, Step, pair
from tests.support import jobs
from tests.support.synthetic import bare, cell

BRIEF = ["task=train", "training=quick", "training.time_limit_s=null", "training.max_steps=40", "training.rows=1000"]
SETTINGS = Settings(
    max_steps=60, time_limit_s=None, rows=None, evaluation_rows=100, patience=None, checkpoint_s=1e9, pictures=0,
    trial=False,
)  # fmt: skip
ADAM = partial(pair, direction=Layerwise, update=partial(torch.optim.Adam, lr=0.02))


def job(path: Path, *overrides: str, **axes: Any) -> Job:
    return jobs.job(path, *BRIEF, *overrides, **axes)


def training_of(make: Any, dim: int = 6, *, build: Callable[[int], nn.Module] = Flow, **changes: Any) -> Training:
    torch.manual_seed(1)
    rows = photographs.photos(dim, 300, seed=0)
    model = build(dim)
    step: Step = make(model)
    settings = Settings(**{**vars(SETTINGS), **changes})
    return Training(model, step, rows, Stream(rows.train, 50, seed=3), settings)


# a run gains 100 (1 - exp(-t / τ)) nats in t seconds; τ, and seconds a step
RUNS = {"layerwise": (10.0, 0.1), "relative": (1.0, 0.01), "slow": (1e3, 0.1)}
START, END_S = -50.0, 20.0


def train_record(optimizer: str, seed: int, dim: int = 64, trial: bool = False) -> Record:
    tau, step_s = RUNS[optimizer]
    seconds = np.concatenate([[0.0], np.geomspace(0.01, END_S, 400)])
    nats = list(map(float, START + 100 * (1 - np.exp(-seconds / tau))))
    none: list[None] = [None] * len(seconds)
    curve = Curve(
        step=[round(t / step_s) for t in seconds], seconds=list(map(float, seconds)), validation_nats=nats,
        held_out_nats=list(none) if trial else list(nats), drift_nats=list(none), halved=list(none),
    )  # fmt: skip
    config = {
        "training": {"trial": trial, "time_limit_s": END_S},
        "optimizer": {"update": {"lr": 0.1}},
        "data": {"centre": True},
    }
    made = bare(cell(optimizer, dim, seed), {"task": "train", **config})
    made.data = DataFacts(train=1, validation=1, held_out=1, bits_offset=6.0)
    made.training = Trained(
        curve=curve, steps=round(END_S / step_s), seconds=END_S, stopped_by="time_limit_s", other_cores=0.0,
        final=Final(validation_nats=nats[-1], held_out_nats=None if trial else nats[-1]),
    )  # fmt: skip
    made.status = Status.OK
    return made
