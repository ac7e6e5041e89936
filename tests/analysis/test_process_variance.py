"""The spread between processes, and the intervals made of it."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stepscale.bench.analysis.process_variance import Spread, half_width, spreads
from stepscale.bench.records import tables
from tests.support.synthetic import COSTS, DIMS, falling, run_of

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_covers_with_few_processes(seeds: int) -> None:
    """A bootstrap over two processes would cover half of the time."""
    rng, covered, trials = np.random.default_rng(5), 0, 400
    for _ in range(trials):
        logs = 0.02 * rng.standard_normal((30, seeds))
        sd = math.sqrt(logs.var(axis=1, ddof=1).mean())
        half = half_width([(Spread(sd, 30 * (seeds - 1)), seeds)])
        covered += abs(logs[0].mean()) <= half
    assert 0.92 <= covered / trials <= 0.98


def test_spread_is_the_one_put_in(cells: pd.DataFrame) -> None:
    spread = spreads(cells, "ratio")
    assert spread.run.dof == 4 * len(DIMS) * len(COSTS)
    assert spread.run.sd == pytest.approx(0.005, rel=0.2)
    assert all(spread.at(dim).sd == pytest.approx(0.005, rel=0.5) for dim in DIMS)
    assert spread.at(64).dof == 4 * len(COSTS) + 4


def test_each_dim_has_its_own(tmp_path: Path) -> None:
    spread = spreads(tables.load(run_of(tmp_path, COSTS, DIMS, seeds=9, noise=falling)), "ratio")
    for dim in DIMS:
        assert spread.at(dim).sd == pytest.approx(falling(dim), rel=0.4)
    assert spread.at(7) == spread.run, "of a dim that was not measured"


def test_one_seed_has_none(tmp_path: Path) -> None:
    spread = spreads(tables.load(run_of(tmp_path, COSTS, DIMS, seeds=1)), "ratio")
    assert spread.run.dof == 0
    assert math.isinf(half_width([(spread.at(64), 1)]))


def test_cells_without_a_limit_have_no_part_in_the_spread_of_the_ratio(cells: pd.DataFrame) -> None:
    without = cells.assign(ratio=cells["ratio"].where(cells["optimizer"] != "cubic"))
    assert spreads(without, "ratio").run.dof == 4 * len(DIMS) * (len(COSTS) - 1)
    assert spreads(cells.assign(ratio=math.nan), "ratio").run.dof == 0


def test_more_comparisons_make_it_wider() -> None:
    one = Spread(0.01, 20)
    assert half_width([(one, 2)]) == pytest.approx(2.0860 * 0.01 / math.sqrt(2), rel=1e-4)
    assert half_width([(one, 2)], comparisons=5) == pytest.approx(2.8453 * 0.01 / math.sqrt(2), rel=1e-4)


def test_a_difference_of_two_means_has_the_interval_of_welchs_test() -> None:
    """As SciPy has it of two samples of unequal size and variance."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 21), rng.normal(0, 3, 6)
    low, high = stats.ttest_ind(one, two, equal_var=False).confidence_interval()
    means = [(Spread(float(of.std(ddof=1)), len(of) - 1), float(len(of))) for of in (one, two)]
    assert half_width(means) == pytest.approx((high - low) / 2)
