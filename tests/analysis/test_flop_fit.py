"""The fit of counted FLOPs to a step's growth: the share it makes cubic, and how often its interval holds the truth."""

import math

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis import flop_fit
from stepscale.bench.analysis.cubic_work import growth
from stepscale.bench.analysis.flop_fit import Curve, cubic_share
from stepscale.bench.analysis.process_variance import spreads
from tests.support.known_work import DIMS, STEPS, Step, table
from tests.support.synthetic import DIMS as MORE_DIMS

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    "truth", [(20, 0.1, 2e-3, 1e-7), (100, 0.1, 2e-3, 5e-7), (150, 0.35, 1e-3, 6e-6)], ids=["5 %", "19 %", "78 %"]
)
@pytest.mark.parametrize("seeds", [2, 5])
def test_interval_of_the_fitted_share_covers(truth: tuple[float, ...], seeds: int) -> None:
    rng, dims = np.random.default_rng(3), np.array(MORE_DIMS, dtype=float)
    time = sum(c * dims**k for k, c in enumerate(truth))
    share, noise, dof = truth[3] * dims[-1] ** 3 / time[-1], 0.02, (seeds - 1) * len(dims) * 7
    covered = 0
    for _ in range(60):
        mean = time * np.exp(noise / math.sqrt(seeds) * rng.standard_normal(len(dims)))
        sd = noise * math.sqrt(rng.chisquare(dof) / dof)
        _, low, high = cubic_share(curve_of(dims, mean, truth, sd / math.sqrt(seeds)), dof)
        covered += low - 1e-9 <= share <= high + 1e-9
    assert covered / 60 >= 0.9


def curve_of(
    dims: np.ndarray, time: np.ndarray, truth: tuple[float, ...], sd: float, limit: np.ndarray | None = None
) -> Curve:
    """Make the curve of a step's times in µs; the limit is quadratic unless given."""
    flops = 1e3 * dims**2
    limit = flops / 1e5 if limit is None else limit
    return Curve(
        dims, time / limit, limit, flops, truth[2] * dims**2 * 1e5, truth[3] * dims**3 * 1e5, np.full(len(dims), sd)
    )


def test_a_machine_that_slows_with_size_makes_no_mixed_step_more_cubic() -> None:
    """Matrix work at half the speed from dim 512 on, launches of 7 µs in the limit and 150 µs in the step."""
    dims = np.array([64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048.0])
    rate = 4e5 / (1 + 1 / (1 + np.exp(-(dims - 512) / 100)))
    limit = 7 + 1.4e3 * dims**2 / rate
    truth = (150, 0.1, 1.7e3 * 0.9 / 1e5, 1.7e3 * 0.1 / dims[-1] / 1e5)
    work = 1e5 * (truth[2] * dims**2 + truth[3] * dims**3)
    time = truth[0] + truth[1] * dims + work / rate
    raw = np.stack([np.ones_like(dims), dims / dims[-1], (dims / dims[-1]) ** 2, (dims / dims[-1]) ** 3], 1)
    terms = flop_fit.optimize.nnls(raw / time[:, None], np.ones(len(dims)))[0]
    _, low, high = cubic_share(curve_of(dims, time, truth, 0.01 / math.sqrt(2), limit), 50)
    share = truth[3] * 1e5 * dims[-1] ** 3 / rate[-1] / time[-1]
    assert low <= share <= high < 0.35
    assert terms[3] / terms.sum() > 0.35, "seconds alone look more cubic, which is why the limit is measured"


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_where_the_spread_does_not_explain_the_residuals_they_widen_the_interval(share: float) -> None:
    """A machine that is no polynomial: dims off by a tenth, of which processes vary by a thousandth."""
    rng, dims = np.random.default_rng(1), np.array(MORE_DIMS, dtype=float)
    truth = (0.5, 0.0, 1e2 * (1 - share) / dims[-1] ** 2, 1e2 * share / dims[-1] ** 3)
    time = sum(c * dims**k for k, c in enumerate(truth))
    covered = 0
    for _ in range(40):
        off = time * np.exp(0.1 * rng.standard_normal(len(dims)))
        _, low, high = cubic_share(curve_of(dims, off, truth, 0.001), 100)
        covered += low <= 1e2 * share / time[-1] <= high
    assert covered >= 36


def fits(cells: pd.DataFrame) -> pd.DataFrame:
    return growth(cells).set_index("optimizer")[["fit_share", "fit_low", "fit_high", "fit_agrees", "cubic_share"]]


def test_an_lu_that_speeds_up_with_d_is_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = table({"lu": STEPS["LU speeding up with d"]}, noise=0.02, seeds=5)
    found = fits(cells).loc["lu"]
    assert found["fit_agrees"] is True and found["fit_low"] <= 0.85 <= found["fit_high"]
    monkeypatch.setattr(flop_fit, "SPEEDING_UP", (0.0,))
    found = fits(cells).loc["lu"]
    assert found["fit_agrees"] is False and found["fit_high"] < 0.8, "at the products' rate it is taken for less"


def test_a_share_that_the_growth_of_the_time_contradicts_is_named() -> None:
    """Operations measured at a tenth of a step whose time grows as if it were nearly all cubic."""
    cells = table({"odd": Step(0.9)}, noise=0.02, seeds=5)
    cells["cubic_share"] = cells["cubic_share"] / 9
    assert fits(cells).loc["odd", "fit_agrees"] is False


def test_there_is_no_fit_without_cubic_flops_a_limit_counts_or_enough_dims() -> None:
    cells = table({"cubic": Step(0.77)})
    without = {
        "no cubic FLOPs": table({"quadratic": Step()}),
        "no limit": cells.assign(ratio=math.nan),
        "nothing counted": cells.assign(order_flops=None),
        "four dims": cells[cells["dim"] != 1000],
    }
    for name, of in without.items():
        found = fits(of).iloc[0]
        assert math.isnan(found["fit_share"]) and found["fit_agrees"] is None, name


def test_one_log_log_line_would_have_been_fooled() -> None:
    """Over all sizes cubic and quadratic look alike: the reason for local slopes and for shares by order."""
    dims = np.array([32, 64, 128, 256, 512, 1024, 2048, 4096, 8192.0])
    quadratic, cubic = 80 + 2.2e-4 * dims**2, 150 + 0.35 * dims + 1.5e-4 * dims**2 + 6e-8 * dims**3
    orders = [np.polyfit(np.log(dims), np.log(t), 1)[0] for t in (quadratic, cubic)]
    assert abs(orders[0] - orders[1]) < 0.1


def test_the_spread_of_the_ratio_is_the_processes_noise() -> None:
    """Products alone, against a limit of products: each class has noise / √2, so the ratio has the noise."""
    cells = table({f"o{k}": Step(products=50) for k in range(8)}, seeds=4, noise=0.07, block_noise=0.005)
    assert spreads(cells, "ratio").run.sd == pytest.approx(0.07, rel=0.15)
    assert set(cells["dim"]) == set(DIMS)
