"""What the terminal says of a cell."""

import re

import pytest

from stepscale.bench.records.operations import Kind
from stepscale.bench.records.schema import Record, Traced
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


@pytest.mark.parametrize(
    ("exponents", "words"),
    [
        ([2.0, 1.0], "growth  FLOPs as d^2.00 here; no cubic work"),
        ([3.0, 2.0], "growth  FLOPs as d^3.00 here; cubic are first, 25 % of the step"),
        ([2.0, None], "growth  FLOPs as d^2.00 here; no cubic work that is known; not known of second"),
    ],
)
def test_a_cell_is_told_with_its_growth(exponents: list[float | None], words: str) -> None:
    """A quarter of the step is in the first operation, whose FLOPs are all there are."""
    made = record("mine", 64, 0, 1e-3)
    assert made.timing is not None and made.counts is not None
    first, second = exponents
    made.counts.kinds = [
        Kind(name="first", shapes=[], flops=8.0, exponent=first),
        Kind(name="second", shapes=[], elements=5, exponent=second),
    ]
    made.counts.calls, made.counts.flops = [1.0, 1.0], 8.0
    assert first is not None
    made.counts.second_dim, made.counts.second_flops = 32, 8.0 / 2**first
    orders = [kind.order for kind in made.counts.kinds]
    made.timing.traced = Traced([0, 1, 2], {order: [2.5e-4] * 3 for order in orders}, [2.5e-4] * 2)
    assert words in progress.details(made).splitlines()
