"""Training for real on tiny problems: the same end after any interruption, statuses, budgets, ground truth."""

import itertools
import pickle
import signal
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picard import picard
from picard.densities import Tanh

from stepscale.bench import data, process, records, report, separation, training
from stepscale.bench.checkpoint import Checkpoint
from stepscale.bench.clock import WallClock
from stepscale.bench.job import Job
from stepscale.bench.run import measure_cell
from stepscale.bench.training import Settings, Stream, Training, next_evaluation
from stepscale.models import Flow
from stepscale.optimizers import (
    EKFAC,
    KFAC,
    Layerwise,
    QuadraticStep,
    Relative,
    RelativeSGD,
    SelfNormalizing,
    Step,
    pair,
)
from tests.test_run import job as job_for

BRIEF = ["task=train", "training=quick", "training.time_limit_s=null", "training.max_steps=40", "training.rows=1000"]
SETTINGS = Settings(
    max_steps=60, time_limit_s=None, rows=None, evaluation_rows=100, patience=None, checkpoint_s=1e9, pictures=0,
    trial=False,
)  # fmt: skip
STEPS: dict[str, Any] = {
    "relative_fused": partial(RelativeSGD, lr=0.05),
    "relative_momentum": partial(pair, direction=Relative, update=partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "adam": partial(pair, direction=Layerwise, update=partial(torch.optim.Adam, lr=0.02)),
    "kfac": partial(pair, direction=KFAC, update=partial(torch.optim.SGD, lr=0.01)),
    "ekfac": partial(pair, direction=EKFAC, update=partial(torch.optim.SGD, lr=0.01)),
    "kfac_whole": partial(QuadraticStep, direction=partial(KFAC, damping=10.0)),
    "self_normalizing": partial(pair, direction=SelfNormalizing, update=partial(torch.optim.SGD, lr=0.01)),
}


def job(path: Path, *overrides: str, **axes: Any) -> Job:
    return job_for(path, *BRIEF, *overrides, **axes)


def training_of(make: Any, dim: int = 6, **changes: Any) -> Training:
    torch.manual_seed(1)
    rows = data.photos(dim, 300, seed=0)
    model = Flow(dim)
    step: Step = make(model)
    settings = Settings(**{**vars(SETTINGS), **changes})
    return Training(model, step, rows, Stream(rows.train, 50, seed=3), settings)


@pytest.mark.parametrize(
    ("model", "optimizer", "dim", "overrides"),
    [
        ("autoencoder", "kfac", 16, ["model.output=bernoulli", "data=curves"]),
        ("autoencoder", "adam", 2, ["data=toy"]),
        ("classifier", "natural", 16, []),
        ("plu_flow", "adam", 16, []),
    ],
)
def test_other_models_are_trained_and_reported(
    tmp_path: Path, model: str, optimizer: str, dim: int, overrides: list[str]
) -> None:
    found = measure_cell(job(tmp_path, f"model={model}", *overrides, optimizer=optimizer, dim=dim))
    assert found["status"] == "ok", found["reason"]
    curve = found["training"]["curve"]["held_out_nats"]
    assert curve[-1] > curve[0]
    records.save(found, tmp_path / "records")
    said = report.write(tmp_path)
    assert ("bits per dim" in said) == (model == "plu_flow") and "nan" not in said.split("Best at the end")[1][:60]


def test_a_classifier_that_diverges_keeps_its_curve(tmp_path: Path) -> None:
    wild = ["model=classifier", "model.activation=relu", "optimizer.update.lr=1e30"]
    found = measure_cell(job(tmp_path, *wild, optimizer="kfac", dim=16))
    assert found["status"] == "diverged" and found["training"]["curve"]["step"][0] == 0


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("stop", [0, 7, 33])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path: Path, name: str, stop: int) -> None:
    whole = training_of(STEPS[name])
    whole.run(WallClock(), lambda: None)
    path, cut = tmp_path / "run.pt", training_of(STEPS[name])

    def look() -> None:
        if cut.position >= stop:
            Checkpoint(path, cut).save()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.run(WallClock(), look)
    again = training_of(STEPS[name])
    Checkpoint(path, again).resume()
    assert again.position == cut.position < 60
    torch.manual_seed(99)  # what comes before the checkpoint's own generator must not matter
    Checkpoint(path, again).resume()
    again.run(WallClock(), lambda: None)
    for one, same in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, same)
    assert again.final() == whole.final()
    for curve in ("step", "validation_nats", "held_out_nats", "drift_nats"):
        assert again.curve[curve] == whole.curve[curve]


def test_a_damaged_checkpoint_is_named_and_training_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.pt").write_bytes(b"half a")
    run = training_of(STEPS["adam"])
    Checkpoint(tmp_path / "run.pt", run).resume()
    assert run.position == 0
    assert "run.pt is damaged" in capsys.readouterr().err


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    Checkpoint(blocked / "run.pt", training_of(STEPS["adam"])).save()
    assert "cannot be written" in capsys.readouterr().err


def test_evaluations_come_at_the_same_steps_whatever_the_last_stop() -> None:
    points = [0]
    while points[-1] < 50_000:
        points.append(next_evaluation(points[-1]))
    assert points[:6] == [0, 1, 2, 3, 4, 5]
    assert max(np.diff(points)) <= training.LONGEST
    assert all(next_evaluation(stop) == point for stop, point in itertools.pairwise(points))
    assert next_evaluation(points[30] - 1) == points[30]


def test_batches_are_the_same_for_all_and_shuffled_each_epoch() -> None:
    rows = torch.arange(10.0).unsqueeze(1)
    one, other = Stream(rows, 3, seed=0), Stream(rows, 3, seed=0)
    epochs = [[one.at(3 * epoch + k) for k in range(3)] for epoch in range(2)]
    assert torch.equal(other.at(4), epochs[1][1])
    assert len(torch.cat(epochs[0]).unique()) == 9
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    with pytest.raises(ValueError, match="the data have 10 train rows, a batch has 11: lower batch"):
        Stream(rows, 11, seed=0)


def test_patience_ends_a_run_and_keeps_the_best() -> None:
    run = training_of(partial(pair, direction=Layerwise, update=partial(torch.optim.SGD, lr=0.0)), patience=3)
    assert run.run(WallClock(), lambda: None) == "patience"
    assert len(run.curve["step"]) == 4
    worse = training_of(
        partial(pair, direction=Layerwise, update=partial(torch.optim.SGD, lr=0.01, maximize=True)), patience=3
    )
    start = worse._likelihoods(None)["validation_nats"]
    worse.run(WallClock(), lambda: None)
    assert worse._likelihoods(None)["validation_nats"] != start
    assert worse.final()["validation_nats"] == start


def test_likelihoods_are_those_of_a_float64_model_over_all_rows() -> None:
    run = training_of(STEPS["adam"])
    exact = deepcopy(run.model).double()
    truth = exact.log_prob(run.data.held_out.double()).mean().item()  # type: ignore[operator]
    assert run.final()["held_out_nats"] == pytest.approx(truth, rel=1e-12)


def test_a_cell_is_trained_and_a_trial_reads_no_held_out_row(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "training.pictures=4", dim=16))
    assert found["status"] == "ok", found["reason"]
    row = records.row(found)
    assert row["steps"] == 40 and row["stopped_by"] == "max_steps"
    assert row["held_out_bits"] == pytest.approx(found["data"]["bits_offset"] - row["held_out_nats"] / 16 / np.log(2))
    with np.load(tmp_path / "pictures" / f"{found['identity']}.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == dict.fromkeys(("data", "samples", "filters"), (4, 4, 4))
    trial = measure_cell(job(tmp_path, "training.trial=true", dim=16))
    assert set(trial["training"]["final"]) == {"validation_nats"}
    assert set(trial["training"]["curve"]["held_out_nats"]) == {None}


def test_a_run_that_diverges_keeps_its_finite_points(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "optimizer.update.lr=1e3"))
    assert found["status"] == "diverged"
    assert "lower the lr" in found["reason"]
    nats = found["training"]["curve"]["held_out_nats"]
    assert nats and np.isfinite(nats).all()
    assert records.row(found)["held_out_nats"] is None


def test_bits_of_photos_are_of_8_bit_pixels() -> None:
    """A uniform density over 256 levels has 8 bits: the rows' own unit is their standard deviation."""
    found = data.photos(64, 1000, seed=0)
    deviation = 2 ** (found.bits_offset - 8)
    assert 0.1 < deviation < 0.4  # of grey values in 0 … 1


def test_asked_to_end_it_leaves_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    endless = job(tmp_path, "training.max_steps=3000", "training.checkpoint_s=0.1", "training.rows=20000", dim=64)
    code = "import pickle, sys; from stepscale.bench import process; process.run(pickle.load(sys.stdin.buffer))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdin
    parent.stdin.write(pickle.dumps(endless))
    parent.stdin.close()
    deadline = time.monotonic() + 60
    while not endless.checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    parent.wait(30)
    assert endless.checkpoint.exists() and not (tmp_path / "records").exists()
    found = process.run(endless)
    assert found["status"] == "ok" and found["training"]["steps"] == 3000
    assert 0 < found["training"]["resumed_at"] < 3000
    assert not endless.checkpoint.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.max_steps=null"], "all null: training would never end"),
        (["training.checkpoint_s=0"], "training.checkpoint_s must be positive, got 0"),
        (["batch=2000"], "the data have 1000 train rows, a batch has 2000: lower batch"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    found = measure_cell(job(tmp_path, *overrides))
    assert found["status"] == "failed" and message in found["reason"]


def test_amari_distance() -> None:
    rng = np.random.default_rng(0)
    permuted = np.eye(5)[rng.permutation(5)] * rng.normal(size=5)
    assert separation.amari_distance(permuted) == pytest.approx(0)
    assert separation.amari_distance(np.ones((5, 5))) == pytest.approx(1)
    P = np.array([[1, 0.5], [0, 2]])  # rows: .5 + 0, columns: 0 + .25
    assert separation.amari_distance(P) == pytest.approx(0.75 / 4)


def test_unmixing_is_the_weight() -> None:
    model = Flow(4, depth=1)
    torch.nn.init.normal_(model.layers[0].bias)
    np.testing.assert_allclose(separation.unmixing(model), model.layers[0].weight.detach().numpy(), atol=1e-6)


def test_sources_are_told_apart_as_well_as_by_fast_ica() -> None:
    """16 Laplace sources, 10 mixings: a flow of depth 1 with logistic noise, whole-sample relative steps.

    Picard maximises the very same likelihood, by another method, so it must find the same.
    """
    ours, theirs, same = [], [], []
    for seed in range(10):
        mixed = data.mixture(16, 5_000, seed=seed)
        torch.manual_seed(seed)
        model = Flow(16, depth=1, base="logistic")
        step = RelativeSGD(model, lr=0.25, bound=1)
        for _ in range(300):
            step(mixed.train)
        found = separation.distances(model, mixed)
        ours.append(found["amari"])
        theirs.append(found["fast_ica_amari"])
        rows = mixed.train.double().numpy().T
        logistic = Tanh(params={"alpha": 0.5})
        whitening, rotation, _ = picard(
            rows, fun=logistic, ortho=False, extended=False, tol=1e-8, max_iter=500, random_state=0
        )
        same.append(separation.amari_distance(rotation @ whitening @ np.asarray(mixed.mixing)))
    assert np.median(ours) <= 1.05 * np.median(theirs), (np.median(ours), np.median(theirs))
    np.testing.assert_allclose(ours, same, rtol=0.02)


@pytest.mark.parametrize(("make", "same"), [(partial(RelativeSGD, lr=0.02, bound=1), True), (STEPS["adam"], False)])
def test_relative_descent_is_equivariant_and_euclidean_is_not(make: Any, same: bool) -> None:
    """On x and on M x, from W and from W M⁻¹, the likelihoods differ by log|det M| throughout."""
    rows, M = torch.randn(400, 4, dtype=torch.float64) ** 3, torch.randn(4, 4, dtype=torch.float64)
    one = Flow(4).double()
    other = deepcopy(one)
    with torch.no_grad():
        other.layers[0].weight.copy_(one.layers[0].weight @ torch.linalg.inv(M))
    steps, differences = (make(one), make(other)), []
    log_det = torch.linalg.slogdet(M).logabsdet.item()
    for _ in range(50):
        for step, x in zip(steps, (rows, rows @ M.T), strict=True):
            step(x)
        differences.append(abs(other.loss(rows @ M.T).item() - one.loss(rows).item() - log_det))
    assert (max(differences) < 1e-9) is same, max(differences)
