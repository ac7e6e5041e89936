"""How many times faster than a baseline, on steps of known work measured in turns and not."""

import math

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis.factors import factors, undecided
from stepscale.bench.analysis.pairs import pairs
from tests.support.known_work import DIMS, Step, table

pytestmark = pytest.mark.numerical

STEPS = {"layerwise": Step(0.77), "relative": Step(), "naive": Step(0.85, speeding_up=700), "twin": Step(0.77)}


def of(found: pd.DataFrame, optimizer: str, baseline: str, dim: int = 1000) -> pd.Series:
    return found.set_index(["optimizer", "baseline", "dim"]).loc[(optimizer, baseline, dim)]


def test_factors_are_times_of_the_baseline_over_those_of_the_optimizer() -> None:
    found = factors(table(STEPS, noise=0.01))
    assert set(found["baseline"]) == {"layerwise", "naive"}
    assert len(found) == len(DIMS) * 2 * 3
    truth = STEPS["naive"].seconds(1000).sum() / STEPS["relative"].seconds(1000).sum()
    row = of(found, "relative", "naive")
    assert row["factor"] == pytest.approx(truth, rel=0.03) and row["verdict"] == "faster"
    assert (row["seeds"], row["rounds"]) == (2, 16)
    back = of(found, "naive", "layerwise")
    assert back["verdict"] == "slower"
    assert back["factor"] == pytest.approx(1 / of(found, "layerwise", "naive")["factor"])


def test_without_a_baseline_the_slowest_at_the_largest_dim_is_one() -> None:
    """At dim 64 more products are slower, at dim 1000 a cubic half."""
    steps = {"fast": Step(products=0.5), "cubic": Step(0.5), "products": Step(products=2.0)}
    assert steps["products"].seconds(64).sum() > steps["cubic"].seconds(64).sum()
    assert set(factors(table(steps))["baseline"]) == {"cubic"}


def test_drift_that_all_share_in_a_round_is_left_out() -> None:
    """The machine runs at half to twice its speed; within a round that is the same for both."""
    cells = table({"layerwise": Step(), "twin": Step()}, seeds=1, noise=0, block_noise=0.002, drift=0.5)
    found = factors(cells)
    assert found["factor"].to_list() == pytest.approx([1.0] * len(DIMS), abs=0.005)
    assert (found["verdict"] == "equal").all()


def test_cells_that_took_no_turns_are_compared_by_their_limits_or_else_by_their_times() -> None:
    cells = table({"layerwise": Step(), "other": Step(products=2.4)}, noise=0.02, turns=False)
    found = factors(cells)
    part = cells.set_index(["optimizer", "dim", "seed"])
    for column in ("ratio", "step_ms"):
        logs = [math.log(part.loc[("layerwise", 512, s), column] / part.loc[("other", 512, s), column]) for s in (0, 1)]
        assert of(found, "other", "layerwise", 512)["factor"] == pytest.approx(math.exp(np.mean(logs)))
        assert of(found, "other", "layerwise", 512)["rounds"] == 0
        found = factors(cells.assign(ratio=math.nan))


def test_one_seed_has_an_interval_if_it_took_turns_and_none_if_not() -> None:
    """The prior of 0.015 and the drift of 0.011, times Student's 97.5 % quantile at 8.9 degrees of freedom (Welch)."""
    alone = table({"layerwise": Step(), "other": Step(0.5)}, seeds=1, block_noise=0.001)
    row = of(factors(alone), "other", "layerwise")
    assert math.log(row["high"] / row["factor"]) == pytest.approx(2.2660 * math.hypot(0.015, 0.011), rel=1e-3)
    assert math.log(of(factors(alone, 0.99), "other", "layerwise")["high"] / row["factor"]) > 0.06
    row = of(factors(alone.assign(turns=None)), "other", "layerwise")
    assert (row["low"], row["high"], row["verdict"]) == (0, math.inf, "undecided")


def test_the_error_of_a_run_that_looks_several_times_is_spent_over_its_looks() -> None:
    """Of three looks each has a third of 5 %."""
    once = table({"layerwise": Step(), "other": Step(0.5)}, seeds=4)
    found = of(factors(once.assign(looks=3)), "other", "layerwise")
    alone = of(factors(once, 1 - 0.05 / 3), "other", "layerwise")
    assert (
        found["high"] == pytest.approx(alone["high"])
        and found["high"] > of(factors(once), "other", "layerwise")["high"]
    )


def test_seeds_of_the_same_minutes_do_not_lessen_what_they_have_in_common() -> None:
    """Of 400 seeds the mean is known to a thousandth, and the factor only to ± 2.1009 · 0.011: t at 18 dof."""
    many = table({"layerwise": Step(), "other": Step()}, dims=[64], seeds=400, noise=0.001, block_noise=0.001)
    row = of(factors(many), "other", "layerwise", 64)
    assert math.log(row["high"] / row["factor"]) == pytest.approx(2.1009 * 0.011, rel=0.02)
    apart = of(factors(many.assign(turns=None)), "other", "layerwise", 64)
    assert math.log(apart["high"] / apart["factor"]) < 0.002


def test_noisy_rounds_make_the_interval_of_one_seed_wider() -> None:
    rough = table({"layerwise": Step(), "other": Step()}, seeds=1, block_noise=0.3)
    assert (pairs(rough)["sd"] > 0.03).all()


def test_intervals_cover_and_are_as_wide_as_the_pairs_vary() -> None:
    """200 pairs of equal steps, three seeds each: process noise of 7 % of one class, and so of their ratio."""
    steps = {f"o{k:02d}": Step(products=50) for k in range(21)}
    covered, sd = [], []
    for run in range(10):
        cells = table(steps, dims=[512, 1000], seeds=3, noise=0.07, block_noise=0.005, rng=np.random.default_rng(run))
        found = pairs(cells)
        sd += found["sd"].to_list()
        renamed = factors(cells.replace({"optimizer": {"o00": "layerwise"}}))
        covered += ((renamed["low"] <= 1) & (renamed["high"] >= 1)).to_list()
    assert np.median(sd) == pytest.approx(0.07, rel=0.1)
    assert 0.91 <= np.mean(covered) <= 0.99


def test_seeds_that_only_some_have_count() -> None:
    cells = table(STEPS, seeds=3, noise=0.01)
    fewer = cells[(cells["seed"] < 2) | cells["optimizer"].isin(["layerwise", "twin"])]
    found = factors(fewer)
    assert of(found, "twin", "layerwise")["seeds"] == 3
    assert of(found, "relative", "layerwise")["seeds"] == 2
    gaps = pairs(fewer).set_index(["one", "other", "dim"])
    # degrees of freedom of a dim: 10 processes less 3 seeds less 4 optimizers plus 1, and 4 of the run
    assert (gaps["dof"] == 4 + 4).all()


def test_what_a_further_seed_would_decide() -> None:
    """The twin is neither told from layerwise nor known to be equal; relative is faster at every dim."""
    cells = table(STEPS, noise=0.04, dims=[256, 1000], rng=np.random.default_rng(3))
    found = {key[-2:] for key in undecided(cells)}
    assert {(256, "layerwise"), (256, "twin"), (1000, "layerwise"), (1000, "twin")} == found
    assert undecided(cells[cells["optimizer"] != "twin"]) == set()
    assert {key[-2:] for key in undecided(cells.assign(looks=5e7))} > found


def test_what_is_undecided_on_one_machine_hangs_on_no_other() -> None:
    """A machine whose processes vary by a third leaves nothing open on one whose vary by a thousandth."""
    steps = {"layerwise": Step(0.74), "relative": Step(), "twin": Step(0.7)}
    machines = [
        table(steps, noise=noise, dims=[256, 1000], rng=np.random.default_rng(3)).assign(machine=name)
        for name, noise in (("quiet", 0.001), ("noisy", 0.3))
    ]
    apart = [undecided(cells) for cells in machines]
    assert undecided(pd.concat(machines, ignore_index=True)) == apart[0] | apart[1]
    assert len(apart[0]) < len(apart[1])


def test_of_two_baselines_the_honest_one_says_what_is_undecided() -> None:
    cells = table({"naive": Step(), "twin": Step(), "layerwise": Step(0.9)}, dims=[1000], noise=0.1)
    assert undecided(cells) == set()
    without = cells[cells["optimizer"] != "layerwise"]
    assert {key[-1] for key in undecided(without)} == {"naive", "twin"}
