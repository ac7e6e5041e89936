"""Training for real on tiny problems: statuses, budgets, what is read and what is recorded."""

import itertools
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.data import photographs
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Number
from stepscale.bench.report import write
from stepscale.bench.training import evaluation, loop, samples
from stepscale.bench.training.batches import Stream
from stepscale.bench.training.loop import next_evaluation
from stepscale.models import Flow
from stepscale.optimizers import Layerwise, pair
from tests.support.training import ADAM, job, training_of

pytestmark = pytest.mark.numerical


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
    assert found.status == "ok", found.reason
    curve = found.training.curve.held_out_nats
    assert curve[-1] > curve[0]
    store.save(found, tmp_path)
    said = write.write(tmp_path)
    assert ("bits per dim" in said) == (model == "plu_flow") and "nan" not in said.split("Best at the end")[1][:60]


def test_a_classifier_that_diverges_keeps_its_curve(tmp_path: Path) -> None:
    wild = ["model=classifier", "model.activation=relu", "optimizer.update.lr=1e30"]
    found = measure_cell(job(tmp_path, *wild, optimizer="kfac", dim=16))
    assert found.status == "diverged" and found.training.curve.step[0] == 0


def test_evaluations_come_at_the_same_steps_whatever_the_last_stop() -> None:
    points = [0]
    while points[-1] < 50_000:
        points.append(next_evaluation(points[-1]))
    assert points[:6] == [0, 1, 2, 3, 4, 5]
    assert max(np.diff(points)) <= loop.LONGEST
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


def test_batches_grow_by_one_factor_a_step_until_they_have_all_rows() -> None:
    """m_k = m_1 exp((k − 1) / b), b such that the fifth has all 640 rows: each twice the last."""
    rows = torch.arange(640.0).unsqueeze(1)
    one, other = (Stream(rows, 40, seed=0, full_at=5) for _ in range(2))
    found = [one.at(k) for k in range(7)]
    assert [len(batch) for batch in found] == [40, 80, 160, 320, 640, 640, 640]
    assert all(len(batch.unique()) == len(batch) for batch in found)
    assert torch.equal(other.at(3), found[3]), "by its place alone"
    assert len(Stream(rows, 40, seed=0, full_at=1).at(0)) == 640
    assert not torch.equal(found[1][:40], found[0]) and not torch.equal(found[5], found[4])


def test_a_cell_s_batches_grow_where_it_says_so(tmp_path: Path) -> None:
    ends = []
    for at in ("null", "2"):
        found = measure_cell(job(tmp_path, f"training.full_batch_at={at}", "training.max_steps=3"))
        assert found.training is not None and found.training.final is not None, found.reason
        ends.append(found.training.final.validation_nats)
    assert ends[0] != ends[1]
    with pytest.raises(ValueError, match=r"training\.full_batch_at must be a whole number of at least 1, got 0"):
        training_of(ADAM, full_batch_at=0)


def test_patience_ends_a_run_and_keeps_the_best() -> None:
    run = training_of(partial(pair, direction=Layerwise, update=partial(torch.optim.SGD, lr=0.0)), patience=3)
    assert run.run(WallClock(), lambda: None) == "patience"
    assert len(run.curve.step) == 4
    worse = training_of(
        partial(pair, direction=Layerwise, update=partial(torch.optim.SGD, lr=0.01, maximize=True)), patience=3
    )
    start = worse._likelihoods(worse.result(), None)[0]
    worse.run(WallClock(), lambda: None)
    assert worse.curve.validation_nats[-1] < worse.curve.validation_nats[0]
    assert worse.final().validation_nats == start


@pytest.mark.parametrize("together", [7, 8192])
def test_likelihoods_are_those_of_a_float64_model_over_all_rows(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "ROWS", together)  # the last part is smaller than the others
    run = training_of(ADAM)
    exact = deepcopy(run.model).double()
    truth = exact.log_prob(run.data.held_out.double()).mean().item()  # type: ignore[operator]
    assert run.final().held_out_nats == pytest.approx(truth, rel=1e-12)


def test_a_cell_is_trained_and_a_trial_reads_no_held_out_row(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "training.pictures=4", dim=16))
    assert found.status == "ok", found.reason
    row = tables.row(found)
    assert row["steps"] == 40 and row["stopped_by"] == "max_steps"
    assert row["held_out_bits"] == pytest.approx(found.data.bits_offset - row["held_out_nats"] / 16 / np.log(2))
    with np.load(tmp_path / "pictures" / f"{found.identity}.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == dict.fromkeys(("data", "samples", "filters"), (4, 4, 4))
    trial = measure_cell(job(tmp_path, "training.trial=true", dim=16))
    assert trial.training.final.held_out_nats is None
    assert set(trial.training.curve.held_out_nats) == {None}


def test_a_run_that_diverges_keeps_its_finite_points(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "optimizer.update.lr=1e3"))
    assert found.status == "diverged"
    assert "lower the lr" in found.reason
    nats = found.training.curve.held_out_nats
    assert nats and np.isfinite(nats).all()
    assert tables.row(found)["held_out_nats"] is None


def test_bits_of_photos_are_of_8_bit_pixels() -> None:
    """A uniform density over 256 levels has 8 bits: the rows' own unit is their standard deviation."""
    found = photographs.photos(64, 20_000, seed=0)
    images = [load_sample_image(f"{name}.jpg").mean(axis=2) / 255 for name in ("china", "flower")]
    greys = np.concatenate([image[:, : round(0.6 * image.shape[1])].ravel() for image in images])
    assert 2 ** (found.bits_offset - 8) == pytest.approx(greys.std(), rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.max_steps=null"], "all null: training would never end"),
        (["training.checkpoint_s=0"], "training.checkpoint_s must be a positive number, got 0"),
        (["training.max_steps=1e3"], "training.max_steps must be a whole number of at least 1, got 1000.0"),
        (["training.evaluation_rows=0.5"], "training.evaluation_rows must be a whole number of at least 1, got 0.5"),
        (["training.patience=true"], "training.patience must be a whole number of at least 1, got True"),
        (["batch=2000"], "the data have 1000 train rows, a batch has 2000: lower batch"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    found = measure_cell(job(tmp_path, *overrides))
    assert found.status == "failed" and message in found.reason


class Warm(Flow):
    """A user's model, of which a sample wants more than a number."""

    def sample(self, n: int, temperature: float) -> torch.Tensor:  # type: ignore[override]
        raise NotImplementedError


class Leaving(Flow):
    """One that ends its process where it is only to be looked at."""

    def sample(self, n: int) -> torch.Tensor:
        raise SystemExit("no samples today")

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and len(x) == samples.GRID**2:
            raise ValueError("no density today")
        return super().log_prob(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and torch.equal(x, torch.eye(len(x))):
            raise ValueError("no unmixing today")
        return super().forward(x)


class Wide(Flow):
    """One whose first affine layer is of another width than the data."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__(dim, depth)
        self.layers.insert(0, torch.nn.Linear(3, 3))
        self.first = self.layers.pop(0)
        self._modules = dict(reversed(self._modules.items()))


@pytest.mark.parametrize(
    ("name", "dim", "overrides", "lost", "kept"),
    [
        ("Warm", 16, ["training.pictures=4"], {"samples": "temperature"}, {"data", "filters"}),
        ("Leaving", 16, ["training.pictures=4"], {"samples": "no samples today"}, {"data", "filters"}),
        ("Leaving", 2, ["data=toy"], {"samples": "today", "density": "no density today"}, {"data"}),
        ("Leaving", 4, ["depth=1", "data=mixture"], {"source separation": "no unmixing today"}, set()),
        ("Wide", 16, ["training.pictures=4"], {"filters": "reshape"}, {"data", "samples"}),
    ],
)
def test_what_cannot_be_shown_of_a_model_loses_no_run(
    tmp_path: Path, name: str, dim: int, overrides: list[str], lost: dict[str, str], kept: set[str]
) -> None:
    words, depth = [f"model._target_={__name__}.{name}", *overrides], 1 if "depth=1" in overrides else 2
    found = measure_cell(job(tmp_path, *words, optimizer="layerwise", dim=dim, depth=depth))
    assert found.status == "ok" and found.training.final.held_out_nats is not None, found.reason
    assert found.notes.keys() == lost.keys() and all(why in found.notes[what] for what, why in lost.items())
    path = tmp_path / "pictures" / f"{found.identity}.npz"
    if kept:
        with np.load(path) as arrays:
            assert set(arrays) == kept


def test_the_record_says_what_its_number_is(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, dim=16))
    assert found.training.number == Number("log-likelihood", "nats", exact=True)
