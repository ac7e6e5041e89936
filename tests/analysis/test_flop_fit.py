"""Which share of a step is cubic, on steps of known cost; and how often its interval holds the truth."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis import cubic_share
from stepscale.bench.analysis.cubic_share import Curve
from stepscale.bench.records import tables
from tests.support.synthetic import COSTS, DIMS, falling, polynomial, run_of

pytestmark = pytest.mark.numerical


def test_costs_come_out_as_what_they_are(cells: pd.DataFrame) -> None:
    found = cubic_share.growth(cells).set_index("optimizer")
    assert found["verdict"].to_dict() == {
        "quadratic": "no cubic term", "cubic": "cubic", "mixed": "undecided", "periodic": "cubic",
    }  # fmt: skip
    for name, cost in COSTS.items():
        cubic = {"quadratic": 0.0, "cubic": 6e-5, "mixed": 4e-6, "periodic": 4e-5}[name] * 1e-6 * 1024**3
        assert found.loc[name, "cubic_low"] <= cubic / cost(1024) <= found.loc[name, "cubic_high"]


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
        sd = noise * math.sqrt(rng.chisquare(dof) / dof)
        _, low, high = cubic_share.cubic_share(curve_of(dims, mean, sd / math.sqrt(seeds)), dof)
        covered += low - 1e-9 <= share <= high + 1e-9
    assert covered / 200 >= 0.93


@pytest.mark.parametrize("dims", [[64, 128, 256, 1024], [64, 96, 128, 192, 256]])
def test_too_few_sizes_or_less_than_a_decade_bear_no_verdict(tmp_path: Path, dims: list[int]) -> None:
    cells = tables.load(run_of(tmp_path, {"cubic": COSTS["cubic"]}, dims))
    assert cubic_share.growth(cells)["verdict"].item() == "too few sizes"


def test_one_log_log_line_would_have_been_fooled() -> None:
    """Over all sizes cubic and quadratic look alike: the reason for local slopes and shares."""
    dims = np.array([32, 64, 128, 256, 512, 1024, 2048, 4096, 8192.0])
    quadratic, cubic = 80 + 2.2e-4 * dims**2, 150 + 0.35 * dims + 1.5e-4 * dims**2 + 6e-8 * dims**3
    orders = [np.polyfit(np.log(dims), np.log(t), 1)[0] for t in (quadratic, cubic)]
    assert abs(orders[0] - orders[1]) < 0.1
    shares = [cubic_share.cubic_share(curve_of(dims, t, 0.01), 50) for t in (quadratic, cubic)]
    assert shares[0][2] < 0.1 and shares[1][1] > 0.25


def curve_of(dims: np.ndarray, time: np.ndarray, sd: float, limit: np.ndarray | None = None) -> Curve:
    """Make the curve of a step's times; the limit is quadratic unless given."""
    flops = 1e3 * dims**2
    limit = flops / 1e5 if limit is None else limit
    return Curve(dims, time / limit, limit, flops, np.full(len(dims), sd))


@pytest.mark.parametrize("cubic", [0.0, 0.8])
def test_a_machine_that_slows_with_size_makes_no_quadratic_step_cubic(cubic: float) -> None:
    """Matrix work at half the speed from dim 512 on, launches of 7 µs in the limit and 150 µs in the step."""
    dims = np.array([64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048.0])
    rate = 4e5 / (1 + 1 / (1 + np.exp(-(dims - 512) / 100)))
    limit = 7 + 1.4e3 * dims**2 / rate
    work = dims**2 * (1 - cubic) + cubic * dims**3 / dims[-1]
    time = 150 + 0.1 * dims + 1.7e3 * work / rate
    raw = np.stack([np.ones_like(dims), dims / dims[-1], (dims / dims[-1]) ** 2, (dims / dims[-1]) ** 3], 1)
    terms = cubic_share.optimize.nnls(raw / time[:, None], np.ones(len(dims)))[0]
    _, low, high = cubic_share.cubic_share(curve_of(dims, time, 0.01 / math.sqrt(2), limit), 50)
    if cubic:
        assert low > 0.25
    else:
        assert high < 0.1
        assert terms[3] / terms.sum() > 0.1, "seconds alone look cubic, which is why the limit is measured"
    assert low - 0.02 <= cubic * 1.7e3 * dims[-1] ** 2 / rate[-1] / time[-1] <= high + 0.02


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_where_the_spread_does_not_explain_the_residuals_they_widen_the_interval(share: float) -> None:
    """A machine that is no polynomial: dims off by a tenth, of which processes vary by a thousandth."""
    rng, dims = np.random.default_rng(1), np.array(DIMS, dtype=float)
    time = 1e-2 * (50 + dims**2 * (1 - share) / dims[-1] ** 2 * 1e4 + dims**3 * share / dims[-1] ** 3 * 1e4)
    truth, covered = share * 1e2 / time[-1], 0
    for _ in range(100):
        off = time * np.exp(0.1 * rng.standard_normal(len(dims)))
        _, low, high = cubic_share.cubic_share(curve_of(dims, off, 0.001), 100)
        covered += low <= truth <= high
    assert covered >= 90


def test_noise_of_small_dims_hides_no_verdict(tmp_path: Path) -> None:
    """Weighed by one spread for all dims, a plainly quadratic step would stay undecided."""
    dims = [*DIMS, 1536, 2048]
    cells = tables.load(run_of(tmp_path, {"one": polynomial(300, 0, 2e-2)}, dims, seeds=5, noise=falling))
    assert cubic_share.growth(cells)["verdict"].item() == "no cubic term"
