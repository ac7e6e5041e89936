"""The analysis against synthetic optimizers of known cost, and its intervals against simulation."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stepscale.bench import records, scaling
from stepscale.bench.scaling import Curve, Pooled
from tests.synthetic import failed, polynomial, record, run_of

DIMS = [64, 96, 128, 192, 256, 384, 512, 768, 1024]
COSTS = {
    "quadratic": polynomial(20, 0, 2e-2),
    "cubic": polynomial(150, 0.35, 1.5e-2, 6e-5),
    "mixed": polynomial(100, 0, 2e-2, 4e-6),  # 17 % of its step at dim 1024 is cubic
    "periodic": lambda d: polynomial(50, 0, 2e-2)(d) + polynomial(0, 0, 0, 4e-4)(d) / 10,  # an inverse every 10 steps
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return records.load(run_of(tmp_path_factory.mktemp("run"), COSTS, DIMS, seeds=5))


def test_costs_come_out_as_what_they_are(cells: pd.DataFrame) -> None:
    found = scaling.growth(cells).set_index("optimizer")
    assert found["verdict"].to_dict() == {
        "quadratic": "no cubic term", "cubic": "cubic", "mixed": "undecided", "periodic": "cubic",
    }  # fmt: skip
    for name, cost in COSTS.items():
        cubic = {"quadratic": 0.0, "cubic": 6e-5, "mixed": 4e-6, "periodic": 4e-5}[name] * 1e-6 * 1024**3
        assert found.loc[name, "cubic_low"] <= cubic / cost(1024) <= found.loc[name, "cubic_high"]


def test_local_slopes_tend_to_the_order(cells: pd.DataFrame) -> None:
    slopes = scaling.local_slopes(cells).groupby("optimizer").last()
    for name, cost in COSTS.items():
        true = math.log(cost(1024) / cost(768)) / math.log(1024 / 768)
        assert slopes.loc[name, "low"] <= true <= slopes.loc[name, "high"]
        assert slopes.loc[name, "high"] - slopes.loc[name, "low"] < 0.15


@pytest.mark.parametrize(
    "truth", [(80, 0, 2e-3, 0), (20, 0.1, 2e-3, 1e-7), (100, 0.1, 2e-3, 5e-7), (150, 0.35, 1e-3, 6e-6)]
)
@pytest.mark.parametrize("seeds", [2, 5])
def test_interval_of_the_cubic_share_covers(truth: tuple[float, ...], seeds: int) -> None:
    rng, dims = np.random.default_rng(3), np.array(DIMS, dtype=float)
    time = sum(c * dims**k for k, c in enumerate(truth))
    share, noise, dof = truth[3] * dims[-1] ** 3 / time[-1], 0.02, (seeds - 1) * len(DIMS) * 7
    covered = 0
    for _ in range(200):
        mean = time * np.exp(noise / math.sqrt(seeds) * rng.standard_normal(len(dims)))
        spread = Pooled(noise * math.sqrt(rng.chisquare(dof) / dof), dof)
        _, low, high = scaling.cubic_share(curve_of(dims, mean, seeds), spread)
        covered += low - 1e-9 <= share <= high + 1e-9
    assert covered / 200 >= 0.93


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_pooled_interval_covers_with_few_processes(seeds: int) -> None:
    """A bootstrap over two processes would cover half of the time."""
    rng, covered, trials = np.random.default_rng(5), 0, 400
    for _ in range(trials):
        logs = 0.02 * rng.standard_normal((30, seeds))
        sd = math.sqrt(logs.var(axis=1, ddof=1).mean())
        half = Pooled(sd, 30 * (seeds - 1)).half_width(seeds)
        covered += abs(logs[0].mean()) <= half
    assert 0.92 <= covered / trials <= 0.98


def test_pooled_spread_is_the_one_put_in(cells: pd.DataFrame) -> None:
    spread = scaling.pooled(cells, "ratio")
    assert spread.dof == 4 * len(DIMS) * len(COSTS)
    assert spread.sd == pytest.approx(0.005, rel=0.2)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    cells = records.load(run_of(tmp_path, {"quadratic": COSTS["quadratic"]}, DIMS, seeds=1))
    assert math.isinf(scaling.pooled(cells, "ratio").half_width(1))
    assert scaling.growth(cells)["verdict"].item() == "too few seeds"
    assert not math.isfinite(scaling.times(cells)["step_ms_high"].iloc[0])


@pytest.mark.parametrize("dims", [[64, 128, 256, 1024], [64, 96, 128, 192, 256]])
def test_too_few_sizes_or_less_than_a_decade_bear_no_verdict(tmp_path: Path, dims: list[int]) -> None:
    cells = records.load(run_of(tmp_path, {"cubic": COSTS["cubic"]}, dims))
    assert scaling.growth(cells)["verdict"].item() == "too few sizes"


def test_one_log_log_line_would_have_been_fooled() -> None:
    """Over all sizes cubic and quadratic look alike: the reason for local slopes and shares."""
    dims = np.array([32, 64, 128, 256, 512, 1024, 2048, 4096, 8192.0])
    quadratic, cubic = 80 + 2.2e-4 * dims**2, 150 + 0.35 * dims + 1.5e-4 * dims**2 + 6e-8 * dims**3
    orders = [np.polyfit(np.log(dims), np.log(t), 1)[0] for t in (quadratic, cubic)]
    assert abs(orders[0] - orders[1]) < 0.1
    shares = [scaling.cubic_share(curve_of(dims, t, 1), Pooled(0.01, 50)) for t in (quadratic, cubic)]
    assert shares[0][2] < 0.1 and shares[1][1] > 0.25


def curve_of(dims: np.ndarray, time: np.ndarray, processes: int, limit: np.ndarray | None = None) -> Curve:
    """Make the curve of a step's times; the limit is quadratic unless given."""
    flops = 1e3 * dims**2
    limit = flops / 1e5 if limit is None else limit
    return Curve(dims, time / limit, limit, flops, np.full(len(dims), float(processes)))


@pytest.mark.parametrize("cubic", [0.0, 0.8])
def test_a_machine_that_slows_with_size_makes_no_quadratic_step_cubic(cubic: float) -> None:
    """Matrix work at half the speed from dim 512 on, launches of 7 µs in the limit and 150 µs in the step."""
    dims = np.array([64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048.0])
    rate = 4e5 / (1 + 1 / (1 + np.exp(-(dims - 512) / 100)))
    limit = 7 + 1.4e3 * dims**2 / rate
    work = dims**2 * (1 - cubic) + cubic * dims**3 / dims[-1]
    time = 150 + 0.1 * dims + 1.7e3 * work / rate
    raw = np.stack([np.ones_like(dims), dims / dims[-1], (dims / dims[-1]) ** 2, (dims / dims[-1]) ** 3], 1)
    terms = scaling.optimize.nnls(raw / time[:, None], np.ones(len(dims)))[0]
    _, low, high = scaling.cubic_share(curve_of(dims, time, 2, limit), Pooled(0.01, 50))
    if cubic:
        assert low > 0.25
    else:
        assert high < 0.1
        assert terms[3] / terms.sum() > 0.1, "seconds alone look cubic, which is why the limit is measured"
    assert low - 0.02 <= cubic * 1.7e3 * dims[-1] ** 2 / rate[-1] / time[-1] <= high + 0.02


def two(tmp_path: Path, one: scaling.Any, other: scaling.Any, noise: float = 0.002) -> pd.DataFrame:
    cells = records.load(run_of(tmp_path, {"one": one, "other": other}, DIMS, seeds=3, noise=noise))
    return scaling.crossovers(cells)


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


def test_failed_and_launch_bound_cells_enter_no_fit(cells: pd.DataFrame, tmp_path: Path) -> None:
    run_of(tmp_path, {"cubic": COSTS["cubic"]}, DIMS)
    records.save(failed("cubic", 2048, 0, "out_of_memory"), tmp_path / "records")
    late = record("cubic", 4096, 0, 1.0)
    late["timing"]["busy_s"] = 0.1
    records.save(late, tmp_path / "records")
    table = records.load(tmp_path)
    assert scaling.growth(table)["dim_max"].item() == 1024
    times = scaling.times(table).set_index("dim")
    assert times.loc[2048, "status"] == "out_of_memory"
    assert times.loc[2048, "reason"] == "simulated out_of_memory"
    assert math.isnan(times.loc[2048, "step_ms"])
    assert times.loc[4096, "launch_bound"]


def test_a_contended_cell_spoils_nothing(tmp_path: Path) -> None:
    """One process slowed tenfold by a neighbour, and flagged: spread and verdict stay as they were."""
    run_of(tmp_path, {"quadratic": COSTS["quadratic"]}, DIMS)
    before = scaling.growth(records.load(tmp_path)).iloc[0]
    slowed = record("quadratic", 256, 9, 10 * COSTS["quadratic"](256))
    slowed["timing"]["blocks"]["other_cores"] = [1.0] * 6
    records.save(slowed, tmp_path / "records")
    cells = records.load(tmp_path)
    after, times = scaling.growth(cells).iloc[0], scaling.times(cells).set_index("dim")
    assert (after["verdict"], after["cubic_high"]) == (before["verdict"], before["cubic_high"])
    assert times.loc[256, "contended"] == 1
    assert times.loc[256, "step_ms"] == pytest.approx(1e3 * COSTS["quadratic"](256), rel=0.03)


def test_groups_are_never_mixed(tmp_path: Path) -> None:
    run_of(tmp_path, {"one": polynomial(0, 0, 1e-3)}, DIMS)
    run_of(tmp_path, {"one": polynomial(0, 0, 5e-3)}, DIMS, batch=10)
    times = scaling.times(records.load(tmp_path))
    assert len(times) == 2 * len(DIMS)
    assert times.groupby("batch")["step_ms"].max().to_dict() == pytest.approx(
        {100: 1e-3 * 1024**2 / 1e3, 10: 5e-3 * 1024**2 / 1e3}, rel=0.02
    )


def test_budgets_give_measured_dims(cells: pd.DataFrame) -> None:
    inside = scaling.within_budget(cells, "step_ms", 5.0).droplevel(list(records.GROUP))
    assert inside["quadratic"] == max(d for d in DIMS if COSTS["quadratic"](d) < 5e-3)
