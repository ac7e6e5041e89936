"""What the terminal says of a cell."""

import re

import pytest

from stepscale.bench.records.schema import Record
from stepscale.bench.runs import progress
from tests.support.synthetic import limit_seconds, record


def said(limit_s: list[float]) -> tuple[Record, str]:
    made = record("mine", 64, 0, 2 * limit_seconds(64))
    assert made.timing is not None
    made.timing.blocks.limit_s = limit_s
    return made, "\n".join([progress.outcome(made), progress.details(made)])


def test_a_cell_is_told_with_its_ratio() -> None:
    _, words = said([limit_seconds(64)] * 6)
    assert "2.00 x limit ±0.0 %" in words and "2.000 x limit [2.000, 2.000]" in words


@pytest.mark.parametrize("times", [0, 6], ids=["no limit", "a wrong limit"])
def test_a_cell_without_a_ratio_is_told_by_its_time_alone(times: int) -> None:
    made, words = said([100 * limit_seconds(64)] * times)
    made.notes["limit"] = "takes longer than the step that contains it: 9 ms, the step 2 ms"
    step_ms = 2e3 * limit_seconds(64)
    assert progress.outcome(made).split() == [f"{step_ms:.3f}", "ms", "±0.0", "%"]
    assert "x limit" not in words and not re.search(r"\bnan\b", words)
    assert "without limit: takes longer than the step" in progress.details(made)
