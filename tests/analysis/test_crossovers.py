"""Who overtakes whom, on steps of known cost."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis.crossovers import crossovers
from stepscale.bench.records import tables
from tests.support.known_work import DIMS as STEP_DIMS
from tests.support.known_work import Step, table
from tests.support.synthetic import DIMS, Cost, falling, polynomial, run_of

pytestmark = pytest.mark.numerical


def two(tmp_path: Path, one: Cost, other: Cost, noise: float = 0.002) -> pd.DataFrame:
    cells = tables.load(run_of(tmp_path, {"one": one, "other": other}, DIMS, seeds=3, noise=noise))
    return crossovers(cells)


def test_crossover_is_found_where_it_is(tmp_path: Path) -> None:
    """800 + 0.001 d² against 10 + 0.004 d²: equal at √(790/0.003) = 513."""
    found = two(tmp_path, polynomial(800, 0, 1e-3), polynomial(10, 0, 4e-3)).iloc[0]
    assert (found["kind"], found["faster"], found["slower"]) == ("crossover", "one", "other")
    assert found["low"] < 513 < found["high"]
    assert found["at"] == pytest.approx(513, rel=0.03)


def test_no_crossover_is_said_not_extrapolated(tmp_path: Path) -> None:
    found = two(tmp_path, polynomial(1, 0, 1e-3), polynomial(1, 0, 2e-3)).iloc[0]
    assert (found["kind"], found["faster"]) == ("none", "one")
    assert math.isnan(found["at"])
    assert (found["dim_min"], found["dim_max"]) == (64, 1024)


def test_equal_costs_are_undecided(tmp_path: Path) -> None:
    assert two(tmp_path, polynomial(1, 0, 1e-3), polynomial(1, 0, 1e-3), noise=0.05)["kind"].item() == "undecided"


def test_costs_within_a_twentieth_are_called_equal_where_that_is_known() -> None:
    """Two steps of the same work, and one of 1 % more, in turns: equal at every dim that is decided."""
    same, more = Step(0.5), Step(0.5, products=1.2 * 1.01)
    cells = table({"one": same, "other": same, "more": more}, seeds=5, noise=0.005, block_noise=0.01)
    found = crossovers(cells).set_index(["faster", "slower"])
    assert (found["kind"] == "equal").all() and (found["decided"] >= 3).all()


def test_equal_at_some_dims_and_faster_at_others_is_faster() -> None:
    """Products fall out of a cache at dim 400: equal below, slower above, and no crossover anywhere."""
    cells = table({"one": Step(), "other": Step(cliff=400)}, seeds=4, noise=0.005, block_noise=0.01)
    found = crossovers(cells).iloc[0]
    assert (found["kind"], found["faster"], found["dims"]) == ("none", "one", 5)
    assert 128 < found["decided_min"] <= 512 and found["decided"] <= 3


def test_factors_are_those_of_the_decided_dims_whoever_is_named_first(tmp_path: Path) -> None:
    """1 + 0.001 d² against 10 + 0.002 d²: from 3.6 at the smallest dim down to 2.01 at the largest."""
    low, high = polynomial(1, 0, 1e-3), polynomial(10, 0, 2e-3)
    truth = [high(dim) / low(dim) for dim in (max(DIMS), min(DIMS))]
    for folder, costs in (("a", (low, high)), ("b", (high, low))):
        found = two(tmp_path / folder, *costs).iloc[0]
        assert found["kind"] == "none" and found["decided"] == found["dims"]
        assert (found["factor_min"], found["factor_max"]) == pytest.approx(truth, rel=0.02)


def test_dims_of_no_decision_are_in_no_factor() -> None:
    """Equal below the cliff, whose factors of 1 are left out."""
    one, other = Step(), Step(cliff=400)
    found = crossovers(table({"one": one, "other": other}, seeds=4, noise=0.005, block_noise=0.01)).iloc[0]
    decided = [dim for dim in STEP_DIMS if found["decided_min"] <= dim <= found["decided_max"]]
    truth = [other.seconds(dim).sum() / one.seconds(dim).sum() for dim in decided]
    assert (found["factor_min"], found["factor_max"]) == pytest.approx((min(truth), max(truth)), rel=0.01)
    assert min(truth) > 1.02
    assert found["equal"] >= 1 and found["equal"] + found["decided"] <= found["dims"]


def test_equal_costs_are_seldom_told_apart_though_small_dims_are_noisier(tmp_path: Path) -> None:
    """One spread for all dims tells a fifth of such pairs apart; 5 % is what the intervals promise."""
    cost = polynomial(20, 0, 1e-2)
    for pair in range(80):
        costs, rng = {f"one {pair}": cost, f"other {pair}": cost}, np.random.default_rng(pair)
        run_of(tmp_path, costs, [32, 64, 256, 1024], seeds=3, noise=falling, batch=pair + 1, rng=rng)
    found = crossovers(tables.load(tmp_path))
    assert len(found) == 80
    assert found["kind"].isin(["none", "crossover"]).mean() <= 0.1
    assert (found["kind"] == "equal").any()
