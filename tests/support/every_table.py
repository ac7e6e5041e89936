"""The columns of every table there is, drawn from synthetic runs of both tasks."""

import functools
import itertools
import tempfile
from pathlib import Path

from msgspec.structs import replace

from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import (
    Curvature,
    Curve,
    DataFacts,
    Final,
    Operation,
    Record,
    Spectrum,
    Status,
    Trained,
)  # fmt: skip
from stepscale.bench.report import scaling_section, scaling_tables
from stepscale.bench.report.compared import versions
from stepscale.bench.report.training import section as training_section
from tests.support.synthetic import COSTS, DIMS, bare, cell, record, run_of

LOOKED = Curvature(batch=[10, 20, 40], largest=[[3.0], [2.0], [1.5]], spectra=[Spectrum(10, [1.0, 2.0], [0.5, 0.5])])
NATS = (-9.0, -7.0, -6.0, -5.0)


@functools.cache
def columns_of_every_table() -> dict[str, list[str]]:
    """Draw a run of each task; return the columns of what ``load`` returns and the CSV files hold."""
    with tempfile.TemporaryDirectory() as folder:
        timed = run_of(Path(folder) / "time", COSTS, DIMS[::4])
        store.save(profiled(), timed)
        trained = Path(folder) / "train"
        for optimizer in ("layerwise", "relative"):
            for seed in (1, 2):
                store.save(training(optimizer, seed), trained)
        for batch, lr, damping in itertools.product((10, 20), (0.1, 0.2), (0.1, 0.2, 0.4)):
            store.save(trial(batch, lr, damping), trained)
        cells, runs = tables.load(timed), tables.load(trained, "train")
        sections = [
            scaling_section.section(scaling_tables.judge(cells), str),
            training_section.section(runs, tables.curves(trained), {}, str, {runs["identity"][0]: LOOKED}),
            versions.section([("before", store.read_all(timed)[0]), ("after", upgraded(timed))]),
        ]
    found = {"cells": list(cells), "runs": list(runs)}
    return found | {Path(name).stem: list(table) for part in sections if part for name, table in part.files.items()}


def upgraded(folder: Path) -> list[Record]:
    """Return a run's records as if another torch had measured them."""
    found = store.read_all(folder)[0]
    return [replace(one, environment=replace(one.environment, torch="1")) for one in found]


def profiled() -> Record:
    made = record("profiled", 64, 0, 1e-3)
    assert made.timing
    made.timing.profile = [Operation("mm", 2.0, 0.5, 0.4)]
    return made


def trial(batch: int, lr: float, damping: float) -> Record:
    """Of an optimizer whose rate and damping are tuned together."""
    made = training("damped", 0)
    made.cell, made.identity = replace(made.cell, batch=batch), f"{batch}-{lr}-{damping}"
    made.config["training"] = {"trial": True}
    made.config["optimizer"] = {"update": {"lr": lr}, "direction": {"damping": damping}}
    return made


def training(optimizer: str, seed: int) -> Record:
    nothing: list[None] = [None] * len(NATS)
    curve = Curve(
        step=[0, 6, 8, 10], seconds=[0.0, 0.6, 0.8, 1.0], validation_nats=list(NATS), held_out_nats=list(NATS),
        drift_nats=list(nothing), halved=list(nothing),
    )  # fmt: skip
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    config = {
        "training": {"trial": False}, "data": {"centre": True},
        "model": {"_target_": "stepscale.models.Quadratic", "dim": 64, "condition": 9.0},
        "optimizer": {"update": sgd, "direction": {"_target_": "stepscale.optimizers.Layerwise"}},
    }  # fmt: skip
    made = bare(cell(optimizer, 64, seed), {"task": "train", **config})
    made.data = DataFacts(train=1, validation=1, held_out=1, bits_offset=6.0)
    final = Final(validation_nats=-5.0, held_out_nats=-5.0)
    made.training = Trained(curve=curve, steps=10, seconds=1.0, stopped_by="max_steps", other_cores=0.0, final=final)
    made.status = Status.OK
    return made
