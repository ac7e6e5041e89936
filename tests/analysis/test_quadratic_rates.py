"""Closed forms of first-order rates against the iteration's matrix, and curves whose rate is known."""

import math
from pathlib import Path

import numpy as np
import pytest

from stepscale.bench.analysis.training import quadratic_rates
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Curve, Record
from stepscale.bench.report import write
from tests.support.training import train_record

LEVELS = np.geomspace(1e-3, 1, 40)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("lr", [0.1, 0.5, 1.0, 1.7])
def test_the_radius_is_that_of_the_iterations_matrix(lr: float, momentum: float, nesterov: bool) -> None:
    """Of (θ, v) ↦ (θ − lr v₊, v₊), v₊ = μ v + h θ; with Nesterov's ahead by torch's rule θ − lr (h θ + μ v₊)."""
    radii = []
    for h in LEVELS:
        velocity = np.array([h, momentum])
        moved = np.array([1, 0]) - lr * (np.array([h, 0]) + momentum * velocity if nesterov else velocity)
        radii.append(np.abs(np.linalg.eigvals(np.array([moved, velocity]))).max())
        found = quadratic_rates.spectral_radius(float(h), lr, momentum, nesterov=nesterov)
        assert found == pytest.approx(radii[-1], rel=1e-6, abs=1e-6)
    rule = {"condition": 1e3, "lr": lr, "momentum": momentum, "nesterov": float(nesterov)}
    assert quadratic_rates.theory(rule) == pytest.approx(-math.log(max(radii)), rel=1e-5)


def test_the_best_rates_are_the_textbooks() -> None:
    κ, r = 100.0, 10.0
    plain = {"condition": κ, "momentum": 0.0, "nesterov": 0.0}
    assert quadratic_rates.theory(plain | {"lr": 2 / (1 + 1 / κ)}) == pytest.approx(-math.log((κ - 1) / (κ + 1)))
    ball = plain | {"lr": (2 / (1 + 1 / r)) ** 2, "momentum": ((r - 1) / (r + 1)) ** 2}
    assert quadratic_rates.theory(ball) == pytest.approx(-math.log((r - 1) / (r + 1)), rel=1e-6)
    assert quadratic_rates.theory(plain | {"lr": 2.5}) < 0


PLAIN = {
    "update": {"_target_": "torch.optim.SGD", "lr": 0.3}, "direction": {"_target_": "stepscale.optimizers.Layerwise"}
}  # fmt: skip


def quadratic_record(seed: int, factor: float, lr: float) -> Record:
    """Of a run whose distance shrinks by a factor a step, after a hundred steps of something else."""
    made = train_record("layerwise", seed)
    steps = list(range(0, 1000, 20))
    nats = [-(factor ** (2 * t)) - 0.5 ** max(0, t - 100) for t in steps]
    none: list[None] = [None] * len(steps)
    made.training.curve = Curve(
        step=steps, seconds=[t / 100 for t in steps], validation_nats=nats, held_out_nats=list(nats),
        drift_nats=list(none), halved=list(none),
    )  # fmt: skip
    made.config["model"] = {"_target_": "stepscale.models.Quadratic", "dim": 64, "condition": 100.0, "noise": 0}
    made.config["optimizer"] = {**PLAIN, "update": {**PLAIN["update"], "lr": lr}}
    made.identity = f"{seed}-{lr:g}"
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for seed in (1, 2, 3):
        store.save(quadratic_record(seed, 0.995 + 0.001 * seed, lr=0.3), tmp_path)
    return tmp_path


def test_a_rate_is_read_off_the_second_half_of_a_curve(run: Path) -> None:
    found = quadratic_rates.rates(tables.load(run, "train"), tables.curves(run))
    assert found["measured"].item() == pytest.approx(-math.log(0.997), rel=1e-6), "the median of three seeds"
    assert found["theory"].item() == pytest.approx(-math.log(1 - 0.3 / 100))
    assert found["off"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"_target_": "stepscale.models.Quadratic", "dim": 64, "condition": 9.0, "noise": 0.1}},
        {"model": {"_target_": "stepscale.models.Quadratic", "dim": 1, "condition": 9.0, "noise": 0}},
        {"model": {"_target_": "own.Quadratic", "size": 64}},
        {"optimizer": {**PLAIN, "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"}}},
        {"optimizer": {**PLAIN, "update": {"_target_": "torch.optim.SGD"}}},
        {"model": {"_target_": "stepscale.models.Flow"}},
        {"optimizer": {"update": {"_target_": "torch.optim.Adam", "lr": 0.1}, "direction": {"_target_": "x"}}},
    ],
)
def test_what_has_no_closed_form_has_no_rate(tmp_path: Path, changed: dict[str, object]) -> None:
    made = quadratic_record(1, 0.99, lr=0.3)
    made.config |= changed
    store.save(made, tmp_path)
    assert not len(quadratic_rates.rates(tables.load(tmp_path, "train"), tables.curves(tmp_path)))


def test_the_page_shows_them(run: Path) -> None:
    said = write.write(run)
    assert "On the quadratic 1 measured rates of convergence are within" in said
    assert (run / "quadratic.png").stat().st_size > 0 and "condition" in (run / "quadratic.csv").read_text()
    assert "Rates on a quadratic" in (run / "report.html").read_text()
