"""Training on a user's file: likelihoods in its units, labels and tokens as they are, useless figures marked."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.cells.build import moved
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.data import user_file
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import NO_BOUND, UNSCALED, Record
from stepscale.bench.report import write
from stepscale.bench.runs import progress
from stepscale.bench.training.batches import Stream
from stepscale.bench.training.loop import Training
from stepscale.models import Autoencoder, Flow, Objective
from tests.support import jobs
from tests.support.training import ADAM, SETTINGS, job

pytestmark = pytest.mark.numerical
ROWS = np.random.default_rng(0).normal([5, 300, -1], [1, 2, 0.5], size=(400, 3))


def trained(path: Path, array: np.ndarray, model: nn.Module, **settings: Any) -> Training:
    np.save(path, array)
    data = user_file.load(str(path), dim=3, rows=None, seed=0, **settings)
    run = Training(model, ADAM(model), data, Stream(data.train, 50, seed=0), SETTINGS)
    run.run(WallClock(), lambda: None)
    return run


def flow() -> Flow:
    torch.manual_seed(0)
    return Flow(3)


def test_likelihoods_of_rows_ten_times_as_large_are_less_by_log_ten_a_dim(tmp_path: Path) -> None:
    one, ten = (trained(tmp_path / "mine.npy", factor * ROWS, flow()) for factor in (1, 10))
    less = 3 * math.log(10)
    for name in ("validation_nats", "held_out_nats"):
        one_s, ten_s = getattr(one.curve, name), getattr(ten.curve, name)
        assert np.subtract(one_s, ten_s) == pytest.approx(np.full(len(one_s), less), abs=1e-4)  # of float32 rows
        assert getattr(one.final(), name) - getattr(ten.final(), name) == pytest.approx(less, abs=1e-4)


@pytest.mark.parametrize("centre", [True, False])
def test_the_likelihood_is_that_of_the_files_own_rows(tmp_path: Path, centre: bool) -> None:
    """By its own float64 rescaling and change of variables, here by autograd's Jacobian."""
    run = trained(tmp_path / "mine.npy", ROWS, flow(), shuffle=False, centre=centre)
    seen, model = torch.from_numpy(ROWS[:250]), run.model.double()
    scale = (seen - seen.mean(0)).square().mean().sqrt()
    rescaled = lambda row: (row - seen.mean(0) * centre) / scale  # noqa: E731
    nats = []
    for row in torch.from_numpy(ROWS[300:]):
        jacobian = torch.autograd.functional.jacobian(rescaled, row)
        assert isinstance(jacobian, Tensor)
        nats.append(-model.loss(rescaled(row)[None]).item() + torch.linalg.slogdet(jacobian).logabsdet.item())  # type: ignore[operator]
    run.model.float()
    assert run.final().held_out_nats == pytest.approx(np.mean(nats), abs=1e-5)
    assert run.curve.held_out_nats[-1] == pytest.approx(np.mean(nats[:100]), abs=1e-5)


class Squares(Flow):
    """A model whose loss is no density."""

    objective = Objective("squared error", "squares")


@pytest.mark.parametrize(("make", "settings"), [(Autoencoder, {}), (Squares, {}), (Flow, {"raw": True})])
def test_what_is_no_density_of_rescaled_rows_stays_as_it_is(
    tmp_path: Path, make: Any, settings: dict[str, Any]
) -> None:
    run = trained(tmp_path / "mine.npy", 1e-3 * ROWS, make(3, 2), **settings)
    assert isinstance(run.data.held_out, Tensor)
    loss = run.model.double().loss(run.data.held_out.double()).item()  # type: ignore[operator]
    run.model.float()
    assert run.final().held_out_nats == pytest.approx(-loss, rel=1e-9)


def cell(folder: Path, array: np.ndarray, *overrides: str, **axes: Any) -> Record:
    np.save(folder / "mine.npy", array)
    given = ["data=file", f"data.path={folder / 'mine.npy'}", "training.rows=null", "batch=50", *overrides]
    return measure_cell(job(folder, *given, **{"optimizer": "adam", **axes}))


def test_the_record_says_how_rows_were_rescaled(tmp_path: Path) -> None:
    found = cell(tmp_path, ROWS, "data.shuffle=false", dim=3)
    assert found.status == "ok" and found.data is not None, found.reason
    seen = ROWS[:250]
    assert found.data.scale == pytest.approx((seen - seen.mean(0)).std()) and found.data.shift == pytest.approx(
        seen.mean(0)
    )
    row = tables.row(store.decode(store.encode(found)))
    assert row["held_out_bits"] == pytest.approx(-row["held_out_nats"] / 3 / math.log(2))
    assert row["caveat"] is None and not found.notes
    assert f"data    {tmp_path / 'mine.npy'}" in progress.details(found)


CONSTANT, WIDE = np.column_stack([ROWS[:, :2], np.ones(400)]), ROWS * [1, 1e5, 1]


@pytest.mark.parametrize(
    ("array", "what", "caveat"),
    [
        (CONSTANT, NO_BOUND, "no upper bound: column 2 is constant"),
        (
            WIDE,
            UNSCALED,
            "no common scale: column 1 has 4e+05 times the deviation of column 2; standardise each column",
        ),
    ],
)
def test_figures_of_degenerate_data_are_marked_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], array: np.ndarray, what: str, caveat: str
) -> None:
    found = cell(tmp_path, array, dim=3)
    assert found.status == "ok", found.reason
    assert f"without {caveat.removeprefix('no ')}" in capsys.readouterr().err
    assert tables.row(found)["caveat"] == caveat
    assert f"no {what}" in progress.outcome(found) and f"without {what}" in progress.details(found)
    store.save(found, tmp_path)
    said = write.write(tmp_path)
    assert f"Mind the figures at dim 3: {caveat}" in said
    assert ("None is best at dim 3" in said) == ("Best at the end" not in said) == (what == NO_BOUND)
    assert caveat in (tmp_path / "training.csv").read_text()


def test_an_autoencoder_and_a_classifier_do_not_mind_degenerate_data(tmp_path: Path) -> None:
    found = cell(tmp_path, CONSTANT, "model=autoencoder", "depth=2", "data=file", dim=3)
    assert found.status == "ok" and not found.notes, found.reason
    labelled = np.column_stack([CONSTANT, ROWS[:, 0] > 5])
    found = cell(tmp_path, labelled, "model=classifier", "data=file", "data.label=last", dim=3)
    assert found.status == "ok" and not found.notes, found.reason
    curve = found.training.curve.held_out_nats  # type: ignore[union-attr]
    assert curve[-1] > curve[0]


class Tokens(nn.Module):
    """The next token by the one before, of 7; rows are ``dim`` tokens."""

    objective = Objective("log-likelihood of tokens")

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7)

    def loss(self, batch: Tensor) -> Tensor:
        scores = self.table(batch[:, :-1]).transpose(1, 2)
        return nn.functional.cross_entropy(scores, batch[:, 1:], reduction="none").sum(1).mean()


def test_tokens_reach_the_model_as_they_are(tmp_path: Path) -> None:
    tokens = (np.arange(400)[:, None] + np.arange(5)) % 7  # each is the one before, plus one
    given = [
        "~model.depth",
        "model._target_=tests.training.test_user_data.Tokens",
        "data.tokens=true",
        "optimizer=layerwise",
    ]
    found = cell(tmp_path, tokens, *given, optimizer="layerwise", dim=5)
    assert found.status == "ok" and not found.notes, found.reason
    start, end = (found.training.curve.held_out_nats[k] for k in (0, -1))  # type: ignore[union-attr]
    assert start is not None and end is not None and end > start
    timed = ["data=file", f"data.path={tmp_path / 'mine.npy'}", "batch=20", *given]
    found = measure_cell(jobs.logged(jobs.job(tmp_path, *timed, optimizer="layerwise", dim=5)))
    assert found.status == "ok" and found.direction is not None and found.direction.cosine == pytest.approx(1), (
        found.reason
    )


def test_values_that_the_type_of_the_training_cannot_hold_are_refused() -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 7e4]])
    assert moved(rows, torch.device("cpu"), torch.bfloat16).isfinite().all()
    with pytest.raises(ValueError, match=r"row 1 of a split of the data is not finite as torch\.float16"):
        moved((rows, torch.zeros(2)), torch.device("cpu"), torch.float16)
