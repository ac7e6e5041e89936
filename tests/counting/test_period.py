"""The period of a step, found by watching its work."""

import pytest

from stepscale.bench.counting.period import WATCHED, repeats


@pytest.mark.parametrize("period", [1, 2, 7, 10, 100, 120])
def test_a_period_is_found(period: int) -> None:
    assert repeats([k % period == 0 for k in range(WATCHED)]) == (period, 0)


def test_it_is_a_multiple_of_what_is_declared() -> None:
    works = [(k % 4 == 0, k % 6 == 0) for k in range(WATCHED)]
    assert repeats(works, least=4) == (12, 0)
    assert repeats(["same"] * WATCHED, least=4) == (4, 0)


def test_an_update_that_warms_up_is_judged_by_what_follows() -> None:
    works = ["warm"] * 9 + [k % 5 == 0 for k in range(WATCHED - 9)]
    assert repeats(works) == (5, 9), "from the tenth step on"


def test_work_without_a_period_has_none() -> None:
    assert repeats([k * k % 311 for k in range(WATCHED)]) is None
    assert repeats([k % 200 == 0 for k in range(WATCHED)]) is None, "met once, nothing says that it repeats"
