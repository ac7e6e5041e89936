"""Targets, times to them and profiles from made-up curves whose truth is known; and the section they become."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import asdict, replace

from stepscale.bench.analysis.training import batch_rates, dampings, learning_curves
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Curve, Number, Record, Status
from stepscale.bench.report import write
from stepscale.bench.report.training import section as training_section
from stepscale.bench.training import samples
from tests.support.synthetic import record
from tests.support.training import END_S, RUNS, START, train_record


def diverged(optimizer: str, seed: int) -> Record:
    made = train_record(optimizer, seed)
    made.status, made.reason = Status.DIVERGED, "made to"
    assert made.training
    made.training.final = None
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in RUNS:
        for seed in (1, 2, 3):
            store.save(train_record(name, seed), tmp_path)
        store.save(train_record(name, 0, trial=True), tmp_path)
    return tmp_path


def test_time_to_target_is_the_curves_own(run: Path) -> None:
    runs, points = tables.load(run, "train"), tables.curves(run)
    table = learning_curves.to_target(runs, learning_curves.reached(runs, points)).set_index(["target", "optimizer"])
    gain = 1 - math.exp(-END_S / 10)  # of layerwise at its end
    row = table.loc[(learning_curves.BASELINE, "relative")]
    assert row["seconds"] == pytest.approx(-math.log(1 - gain), rel=1e-2)
    assert row["steps"] == pytest.approx(row["seconds"] / 0.01, abs=0.5), "steps are whole numbers"
    assert row["of_baseline"] == pytest.approx(row["seconds"] / END_S, rel=1e-2)
    assert row["step_ms"] == pytest.approx(10)
    assert table.loc[(learning_curves.BASELINE, "slow"), "missed"] == 3
    assert math.isinf(table.loc[(learning_curves.BASELINE, "slow"), "seconds"])
    assert table.loc[(learning_curves.BEST, "relative"), "seconds"] == pytest.approx(-math.log(0.01), rel=2e-2)
    assert math.isnan(table.loc[(learning_curves.BEST, "relative"), "of_baseline"])  # layerwise missed it


def test_profiles_count_misses_as_never(run: Path) -> None:
    runs, points = tables.load(run, "train"), tables.curves(run)
    found = learning_curves.profiles(learning_curves.to_target(runs, learning_curves.reached(runs, points)))
    assert found[found["optimizer"] == "relative"]["share"].max() == 1
    assert found[found["optimizer"] == "layerwise"]["share"].max() == 0.5
    assert found[found["optimizer"] == "slow"]["share"].max() == 0


def test_likelihoods_of_another_unit_say_so(run: Path, tmp_path: Path) -> None:
    of_rows = training_section.section(tables.load(run, "train"), tables.curves(run), {}, str)
    assert "unit" not in of_rows.headline["Held-out likelihood"] and "nats per byte" not in " ".join(of_rows.findings)
    for seed in (1, 2):
        made = train_record("layerwise", seed)
        made.training.number = Number(unit="nats per byte")
        store.save(made, tmp_path / "text")
    own = tmp_path / "text"
    found = training_section.section(tables.load(own, "train"), tables.curves(own), {}, str)
    assert found.headline["Held-out likelihood"]["unit"].tolist() == ["nats per byte"]
    assert re.search(r"Best at the end.*: `layerwise`, -?[\d.]+ nats per byte \[", " ".join(found.findings))


def test_trials_are_in_no_result(run: Path) -> None:
    results = learning_curves.results(tables.load(run, "train"))
    assert set(results["seeds"]) == {3}


def test_a_diverged_run_counts_as_the_worst(run: Path) -> None:
    """Left out, the one run that did not diverge would be best of all, and move the target."""
    before = learning_curves.targets(tables.load(run, "train"), tables.curves(run))
    for seed in (1, 2):
        store.save(diverged("relative", seed), run)
    found = learning_curves.results(tables.load(run, "train")).set_index("optimizer")
    assert math.isnan(found.loc["relative", "held_out_nats"]) and math.isnan(found.loc["relative", "held_out_bits"])
    assert found.loc["relative", "ok"] == 1
    after = learning_curves.targets(tables.load(run, "train"), tables.curves(run)).set_index("target")["nats"]
    assert after[learning_curves.BASELINE] == before.set_index("target")["nats"][learning_curves.BASELINE]
    assert after[learning_curves.BEST] < before.set_index("target")["nats"][learning_curves.BEST], (
        "of the best that mostly ended"
    )


def test_seeds_that_end_differently_are_judged_by_their_median(tmp_path: Path) -> None:
    for seed, lost in enumerate((0, 5, 9)):
        made = train_record("layerwise", seed)
        curve = made.training.curve
        curve.held_out_nats = [nats - lost for nats in curve.held_out_nats]
        made.training.final.held_out_nats -= lost
        store.save(made, tmp_path)
    runs, points = tables.load(tmp_path, "train"), tables.curves(tmp_path)
    end = train_record("layerwise", 0).training.final.held_out_nats
    assert learning_curves.targets(runs, points).set_index("target")["nats"][learning_curves.BASELINE] == pytest.approx(
        end - 5
    )
    best, worst = (learning_curves.results(runs)[name].item() for name in ("high", "low"))
    assert (best, worst) == pytest.approx((end, end - 9))


def test_what_was_not_tuned_is_named(run: Path) -> None:
    assert "Not tuned" not in learning_curves.budget(tables.load(run, "train"))
    store.save(train_record("relative", 1, dim=128), run)
    assert "Not tuned, having nothing of the kind: `relative`." in learning_curves.budget(tables.load(run, "train"))


def test_trials_of_two_lengths_are_counted_apart(run: Path) -> None:
    for name, count in (("layerwise", 4), ("relative", 2), ("slow", 2)):
        for number in range(6):
            short = train_record(name, 0, trial=True)
            short.identity, short.config["training"]["time_limit_s"] = f"{name}{number}", 1.5
            short.training.steps = 10
            short.config["optimizer"]["update"]["lr"] = number
            store.save(short, run)
        for number in range(count - 1):  # one is there
            long = train_record(name, 0, trial=True)
            long.identity, long.config["optimizer"]["update"]["lr"] = f"{name}{number}long", number
            store.save(long, run)
    said = learning_curves.budget(tables.load(run, "train"))
    assert said.startswith(
        "Tuned alike: 6 trials of 1.5 s of steps, and of the best of these 2 to 4 once more for 20 s of steps (more"
        " where none of the first came to its end) for each optimizer and workload,"
    )


BATCHES, GRID = (50, 200, 800), [1e-3 * 2**j for j in range(8)]


def batch_trial(batch: int, rate: float, best: float, largest: float) -> Record:
    """A trial whose end falls with the distance from the best rate; beyond the largest it ends below its start."""
    made = train_record("layerwise", 0, trial=True)
    made.cell = replace(made.cell, batch=batch)
    made.config["training"] = {"trial": True, "max_steps": 80_000 // batch}
    made.identity, made.config["optimizer"]["update"]["lr"] = f"{batch}-{rate:g}", rate
    assert made.training and made.training.final
    made.training.steps = 80_000 // batch
    nats = START + 9 - abs(math.log(rate / best)) if rate <= largest else START - 1
    made.training.final.validation_nats = nats
    if rate > 2 * largest:
        made.status, made.training.final = Status.DIVERGED, None
    return made


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """The best rate grows as the batch; the largest stable one as its root, to the end of what was tried."""
    for k, batch in enumerate(BATCHES):
        for rate in GRID:
            store.save(batch_trial(batch, rate, 1e-3 * 4**k, 32e-3 * 2**k), tmp_path)
        made = train_record("layerwise", 1)
        made.cell, made.identity = replace(made.cell, batch=batch), f"{batch}-final"
        store.save(made, tmp_path)
    return tmp_path


def test_rates_grow_with_the_batch_as_they_were_made_to(batches: Path) -> None:
    found = batch_rates.rates(tables.load(batches, "train"), tables.curves(batches)).sort_values("batch")
    assert found["batch"].tolist() == [*BATCHES] and found["spacing"].tolist() == pytest.approx([2, 2, 2])
    assert found["best"].tolist() == pytest.approx([1e-3, 4e-3, 16e-3])
    assert found["stable"].tolist() == pytest.approx([32e-3, 64e-3, 128e-3])
    assert found["best_open"].tolist() == [True, False, False] and found["stable_open"].tolist() == [False, False, True]
    assert batch_rates.growth(found, "best") == pytest.approx((1, 1 / 4))
    assert batch_rates.growth(found, "stable") == pytest.approx((1 / 2, 1 / 4))


def test_rates_of_one_batch_or_of_trials_of_two_lengths_are_not_compared(run: Path, batches: Path) -> None:
    runs, points = tables.load(batches, "train"), tables.curves(batches)
    assert set(batch_rates.rates(runs, points)["optimizer"]) == {"layerwise"}
    assert not len(batch_rates.rates(runs[runs["batch"] == 50], points))
    halved = runs.assign(budget=[f"{k % 2} steps" for k in range(len(runs))])
    assert not len(batch_rates.rates(halved, points))


def test_rates_are_drawn_before_every_optimizer_has_a_final_run(batches: Path) -> None:
    """As of a sweep that was interrupted: trials of all come first."""
    for batch in BATCHES:
        for rate in GRID:
            made = batch_trial(batch, rate, 4e-3, 32e-3)
            made.cell, made.identity = replace(made.cell, optimizer="waiting"), f"waiting-{made.identity}"
            store.save(made, batches)
    assert "`waiting`: from batch 50 to 800 the best learning rate grows as B^0.00" in write.write(batches)


def test_a_damping_that_is_tuned_alone_is_no_rate(batches: Path) -> None:
    runs, points = tables.load(batches, "train"), tables.curves(batches)
    assert len(batch_rates.rates(runs, points))
    damped = runs.assign(tuned=[{"damping": value} for tuned in runs["tuned"] for value in tuned.values()])
    assert not len(batch_rates.rates(damped, points))


def test_the_report_draws_rates_against_the_batch_and_says_what_shows(batches: Path) -> None:
    said = write.write(batches)
    assert "`layerwise`: from batch 50 to 800 the best learning rate grows as B^1.00" in said
    assert "the largest stable one as B^0.50 (the largest that were tried in part: it may be more)" in said
    assert "the grid's spacing blurs either by 0.25" in said
    assert "Tuned alike: 8 trials of 100 steps to 1600 steps for each optimizer and workload," in said
    assert (batches / "rates.png").stat().st_size > 0 and (batches / "rates.svg").stat().st_size > 0


RATES, TRIED = (1e-3, 1e-2), [10.0**k for k in range(-5, 3)]


def damping_trial(batch: int, rate: float, damping: float, best: float) -> Record:
    """A trial whose end falls with the distance from the best damping; the largest of all diverges."""
    made = batch_trial(batch, 1.0, math.exp(abs(math.log(damping / best))), 10.0)
    made.identity = f"{batch}-{rate:g}-{damping:g}"
    made.config["optimizer"] = {"update": {"lr": rate}, "direction": {"damping": damping}}
    if damping == TRIED[-1]:
        made.status, made.training.final = Status.DIVERGED, None  # type: ignore[union-attr]
    return made


def damped(folder: Path, best: Callable[[float, int], float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    for batch in (50, 500, 5000):
        for rate in RATES:
            for damping in TRIED:
                store.save(damping_trial(batch, rate, damping, best(rate, batch)), folder)
        made = train_record("layerwise", 1)
        made.cell, made.identity = replace(made.cell, batch=batch), f"{batch}-final"
        store.save(made, folder)
    return tables.load(folder, "train"), tables.curves(folder)


def test_dampings_grow_with_rate_and_batch_as_they_were_made_to(tmp_path: Path) -> None:
    found = dampings.dampings(*damped(tmp_path, lambda rate, batch: 50 * 10 * rate / batch))
    assert found.set_index(["batch", "rate"])["damping"].to_dict() == pytest.approx(
        {(batch, rate): 500 * rate / batch for batch in (50, 500, 5000) for rate in RATES}
    )
    assert not found["open"].any() and found["spacing"].tolist() == pytest.approx([10] * 6)
    grown = dampings.growth(found)
    assert grown == pytest.approx(dampings.Growth(rate=1, batch=-1, rate_blur=1, batch_blur=1 / 2, pairs=6))
    assert "`layerwise`: from batch 50 to 5000 the best damping grows as lr^1.00 B^-1.00;" in write.write(tmp_path)
    assert (tmp_path / "dampings.png").stat().st_size > 0 and (tmp_path / "dampings.csv").stat().st_size > 0


def test_a_best_damping_at_an_end_of_what_was_tried_tells_no_growth(tmp_path: Path) -> None:
    runs, points = damped(tmp_path, lambda rate, batch: TRIED[0] if batch < 5000 else 1.0)
    found = dampings.dampings(runs, points)
    assert found.set_index(["batch", "rate"])["open"].groupby("batch").all().to_dict() == {
        50: True, 500: True, 5000: False,
    }  # fmt: skip
    assert dampings.growth(found).pairs == 2 and math.isnan(dampings.growth(found).batch)
    said = write.write(tmp_path)
    assert "it is not told how the best damping grows: at 2 of 6 pairs of rate and batch the best lies within" in said
    assert not len(dampings.dampings(runs[runs["batch"] == 50], points)), "of one batch"
    halved = runs.assign(budget=[f"{k % 2} steps" for k in range(len(runs))])
    assert not len(dampings.dampings(halved, points)), "of trials of two lengths"
    assert not len(batch_rates.rates(runs, points)), "of two settings no one rate is the best"


def test_posteriors_are_drawn_as_contours_over_their_draws(run: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("layerwise", "relative"):
        made = train_record(name, 1)
        contour = np.array([[1.0, 2.0], [2.0, 0.5], [0.5, 1.0]])
        samples.save({"data": rng.normal(size=(50, 2)), "contour": contour}, run / "pictures" / f"{made.identity}.npz")
    write.write(run)
    assert (run / "pictures.png").stat().st_size > 0
    text = (run / "pictures.svg").read_text()
    assert "the posterior itself, drawn" in text and ">relative<" in text
    samples.save({"data": rng.normal(size=(5, 2)), "contour": contour[:2]}, run / "pictures" / f"{made.identity}.npz")
    assert "its contour is no mean and covariance in the plane" in write.write(run)


def test_bits_per_dim(run: Path) -> None:
    results = learning_curves.results(tables.load(run, "train")).set_index("optimizer")
    nats = results.loc["relative", "held_out_nats"]
    assert results.loc["relative", "held_out_bits"] == pytest.approx(6 - nats / 64 / math.log(2))


def test_runs_none_of_which_began_are_told(tmp_path: Path) -> None:
    """As where building fails, or a run is killed: there is no curve."""
    for seed in (1, 2):
        made = train_record("relative", seed)
        made.status, made.reason, made.training = Status.OUT_OF_MEMORY, "there is too little", None
        store.save(made, tmp_path)
    said = write.write(tmp_path)
    assert "2 of 2 final runs: out_of_memory." in said and write.FAILED not in said
    assert "there is too little" in (tmp_path / "report.html").read_text()
    assert not len(tables.curves(tmp_path)) and "held_out_nats" in tables.curves(tmp_path)


def test_the_report_says_it_and_shows_no_nan(run: Path) -> None:
    short = diverged("slow", 4)
    short.training.curve = Curve(**{name: values[:3] for name, values in asdict(short.training.curve).items()})
    store.save(short, run)
    said = write.write(run)
    assert "`relative` is where `layerwise` ends" in said
    assert "`slow` does not reach the end of `layerwise`" in said
    assert "1 of 10 final runs: diverged." in said
    assert "Tuned alike: 1 trials of 20 s of steps for each optimizer and workload," in said
    for name in ("training.png", "training.svg", "curves.csv", "targets.csv", "training.csv", "report.html"):
        assert (run / name).stat().st_size > 0
    assert "nan" not in (run / "training.svg").read_text().lower().split("<metadata")[0]
    assert (run / "report.html").read_text().count("<svg") == 2


def test_timing_and_training_share_a_page(run: Path) -> None:
    store.save(record("relative", 64, 0, 1e-3), run)
    page = (write.write(run), (run / "report.html").read_text())[1]
    assert page.index("Scaling of one step") < page.index("What a step buys")
