import numpy as np
import pytest
from scipy.stats import binom

from stepscale.bench.records.headline import LEAST_RATIO, MIN_BLOCKS, estimate, limit_fault, median_interval
from stepscale.bench.records.schema import Blocks

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("n", [6, 8, 15, 40])
def test_interval_of_the_median_covers_as_it_says(n: int) -> None:
    """Skewed values, so that an interval for the mean would miss."""
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.exponential(size=n)) for _ in range(4000)]
    coverage = np.mean([low <= np.log(2) <= high for low, _, high in intervals])
    assert 0.94 <= coverage <= 0.995


def test_the_interval_leaves_out_what_the_binomial_distribution_says() -> None:
    for n in range(1, 300):
        low, _, high = median_interval(np.arange(n))
        left_out = max(0, int(binom.ppf(0.025, n, 0.5)) - 1)
        assert (low, high) == (left_out, n - 1 - left_out)


def test_few_values_have_their_range_for_an_interval() -> None:
    assert median_interval(np.array([3.0, 1.0, 2.0])) == (1.0, 2.0, 3.0)


def columns(step: list[float], cores: list[float | None]) -> Blocks:
    return Blocks([1] * len(step), step, step, [1.0] * len(step), cores)


def test_contended_blocks_do_not_enter_where_enough_others_are() -> None:
    judged = estimate(columns([1.0] * MIN_BLOCKS + [9.0] * 20, [0.0] * MIN_BLOCKS + [1.0] * 20))
    assert (judged.step_s, judged.contended) == (1.0, False)


def test_where_too_few_blocks_are_quiet_all_are_used_and_flagged() -> None:
    judged = estimate(columns([1.0] * 3 + [9.0] * 20, [0.0] * 3 + [1.0] * 20))
    assert (judged.step_s, judged.contended) == (9.0, True)


def test_an_unknown_load_is_no_contention() -> None:
    assert not estimate(columns([1.0] * 8, [None] * 8)).contended


def test_no_blocks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no blocks"):
        estimate(columns([], []))


def test_precision_is_half_the_interval_as_a_share() -> None:
    assert estimate(columns([1.9, 2.0, 2.2], [0.0] * 3)).precision == pytest.approx(0.075)


def test_without_a_limit_there_is_no_ratio_and_precision_is_the_steps() -> None:
    step = [9.0, 1.9, 2.0, 2.2, 1.9, 2.0, 2.2]
    judged = estimate(Blocks([1] * 7, step, step, [], [5.0] + [0.0] * 6))
    assert (judged.step_s, judged.contended) == (2.0, False)
    assert np.isnan([judged.limit_s, judged.ratio, judged.ratio_low, judged.ratio_high]).all()
    assert judged.precision == pytest.approx(0.075)
    assert "declares no products" in str(limit_fault(Blocks([1] * 7, step, step, [], [0.0] * 7)))


def test_a_step_clearly_faster_than_its_limit_has_no_ratio_but_a_reason() -> None:
    fast = columns([0.5, 0.6, 0.9], [0.0] * 3)
    judged = estimate(fast)
    assert judged.step_s == 0.6
    assert np.isnan([judged.limit_s, judged.ratio, judged.ratio_low, judged.ratio_high]).all()
    assert limit_fault(fast) == "takes longer than the step that contains it: 1000 ms, the step 600 ms"


@pytest.mark.parametrize("highest", [LEAST_RATIO, 1.0, 2.0])
def test_a_step_that_may_be_as_slow_as_its_limit_has_a_ratio(highest: float) -> None:
    blocks = columns([0.9, 0.95, highest], [0.0] * 3)
    assert estimate(blocks).ratio == 0.95
    assert limit_fault(blocks) is None
