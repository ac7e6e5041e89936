"""The share of cubic work, its interval and the word for it, on steps of known work."""

import math

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis import cubic_work
from stepscale.bench.analysis.cubic_work import cubic_shares, growth, half_dim, shares, verdict
from tests.analysis.simulated import share_runs
from tests.support.known_work import DIMS, KINDS, STEPS, Step, table

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    return growth(table(STEPS)).set_index("optimizer")


def test_steps_are_called_what_they_are(judged: pd.DataFrame) -> None:
    assert judged["verdict"].to_dict() == {name: word for name, (_, word) in KINDS.items()}
    for name, step in STEPS.items():
        assert judged.loc[name, "cubic_low"] <= step.cubic_share(1000) <= judged.loc[name, "cubic_high"]
        assert judged.loc[name, "cubic_high"] - judged.loc[name, "cubic_low"] < 0.1


def test_no_cubic_operation_means_a_share_of_exactly_nothing(judged: pd.DataFrame) -> None:
    for name, step in STEPS.items():
        found = judged.loc[name, ["cubic_share", "cubic_low", "cubic_high"]].to_list()
        assert (found == [0, 0, 0]) == (step.share == 0)
        assert (judged.loc[name, "cubic_operations"] == "") == (step.share == 0)


def test_where_half_of_the_step_is_cubic_is_found_and_never_extrapolated(judged: pd.DataFrame) -> None:
    """The LU passes a half below what was measured, the periodic step above, and the others in between or never."""
    step = STEPS["cubic at the products' rate"]
    truth = next(dim for dim in range(64, 1000) if step.cubic_share(dim) >= 0.5)
    found = judged["half_dim"].dropna()
    assert found.index.to_list() == ["cubic at the products' rate"]
    assert found.item() == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ([0.2, 0.4, 0.6], math.sqrt(2) * 128),  # in the middle of both logs
        ([0.6, 0.7, 0.8], math.nan),
        ([0.2, 0.6, 0.4], math.nan),
        ([0.6, 0.4, 0.8], 128 * 2 ** (math.log(1.5) / math.log(6))),
        ([0.0, 0.0, 0.0], math.nan),
        ([], math.nan),
    ],
)
def test_half_dim_by_hand(share: list[float], expected: float) -> None:
    found = half_dim(np.array([64, 128, 256.0][: len(share)]), np.array(share))
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0, 0, "no cubic work"), (0.26, 0.9, "cubic"), (0.1, 0.24, "partly cubic"), (0.1, 0.3, "undecided"),
     (0, 0.3, "undecided"), (math.nan, math.nan, "not counted")],
)  # fmt: skip
def test_the_word_follows_from_the_interval(low: float, high: float, word: str) -> None:
    assert verdict(low, high) == word


def test_one_process_has_an_honest_interval() -> None:
    """log odds ± 0.42: ± 0.033 times the 97.5 % quantile of Student's t with one degree of freedom, 12.7."""
    found = cubic_shares(table({"half": STEPS["periodic: an inverse every 10th step"]}, seeds=1)).iloc[-1]
    odds = [math.log(found[name] / (1 - found[name])) for name in ("cubic_low", "cubic_share", "cubic_high")]
    assert np.diff(odds) == pytest.approx([0.4193, 0.4193], rel=1e-3)


def changed(cells: pd.DataFrame, **columns: object) -> pd.DataFrame:
    return cells.assign(**{name: [value] * len(cells) for name, value in columns.items()})


def test_what_is_not_counted_is_not_judged() -> None:
    cells = table({"quadratic": Step()})
    for unknown in (changed(cells, uncounted="mystery"), changed(cells, cubic_share=math.nan, shares=None)):
        found = growth(unknown).iloc[0]
        assert found["verdict"] == "not counted" and math.isnan(found["cubic_high"])
    assert growth(changed(cells, uncounted="mystery"))["uncounted"].item() == "mystery"


@pytest.mark.parametrize(("unknown", "word"), [(0.01, "partly cubic"), (0.4, "undecided")])
def test_work_of_unknown_order_may_be_cubic_too(unknown: float, word: str) -> None:
    cells = table({"mixed": Step(0.15)})
    known = growth(cells).iloc[0]
    more = changed(cells, uncounted="mystery")
    more["shares"] = [found | {-1: unknown} for found in cells["shares"]]
    found = growth(more).iloc[0]
    assert found["verdict"] == word
    assert found["cubic_low"] == known["cubic_low"]
    assert found["cubic_high"] == pytest.approx(known["cubic_high"] + unknown)


def test_the_largest_dim_with_a_known_share_is_judged() -> None:
    cells = table({"cubic": Step(0.77)})
    cells.loc[cells["dim"] == 1000, "cubic_share"] = math.nan
    found = growth(cells).iloc[0]
    assert (found["verdict"], found["dim_max"], found["sizes"]) == ("cubic", 512, 4)


@pytest.mark.parametrize(("measured", "end"), [(1.2, "cubic_high"), (0.001, "cubic_low")])
def test_a_share_that_is_not_told_from_all_or_nothing_has_an_open_interval(measured: float, end: str) -> None:
    """A traced block that took longer than the untraced one; and other cells keep their spread."""
    cells = table({"odd": Step(0.5), "other": Step(0.77)})
    before = cubic_shares(cells).set_index(["optimizer", "dim"]).loc["other"]
    cells.loc[(cells["optimizer"] == "odd") & (cells["dim"] == 1000), "cubic_share"] = measured
    found = cubic_shares(cells).set_index(["optimizer", "dim"])
    assert found.loc[("odd", 1000), end] == (1.0 if end == "cubic_high" else 0.0)
    assert 0 < found.loc[("odd", 1000), "cubic_share"] < 1
    widths = [of["cubic_high"] - of["cubic_low"] for of in (before, found.loc["other"])]
    assert widths[1].to_list() == pytest.approx(widths[0].to_list(), rel=0.3)


def test_disturbed_and_waiting_cells_are_not_judged() -> None:
    cells = table({"cubic": Step(0.77)}, seeds=3)
    before = cubic_shares(cells[cells["seed"] < 2])
    for flag in ("contended", "launch_bound"):
        flagged = cells.assign(**{flag: cells["seed"] == 2})
        flagged.loc[flagged["seed"] == 2, "cubic_share"] = 0.1
        pd.testing.assert_frame_equal(cubic_shares(flagged), before)
        assert growth(cells.assign(**{flag: True})).empty


def test_shares_of_every_order_are_means_over_processes_and_add_up() -> None:
    found = shares(table({"cubic": Step(0.77), "quadratic": Step()}, noise=0.05))
    assert found.groupby(["optimizer", "dim"])["share"].sum().to_list() == pytest.approx([1.0] * 2 * len(DIMS))
    assert set(found.loc[found["optimizer"] == "quadratic", "order"]) == {0, 1, 2}
    of = found.set_index(["optimizer", "dim", "order"])["share"]
    truth = Step(0.77).seconds(256) / Step(0.77).seconds(256).sum()
    assert of.loc["cubic", 256].to_list() == pytest.approx(truth.tolist(), abs=0.02)


def test_an_order_that_one_process_has_not_counts_as_nothing_there() -> None:
    cells = table({"cubic": Step(0.77)}, dims=[256])
    cells["shares"] = [{2: 0.5, 3: 0.5}, {2: 1.0}]
    assert shares(cells)[["order", "share"]].to_numpy().tolist() == [[2, 0.75], [3, 0.25]]


def test_the_exponent_is_that_of_the_largest_dim(judged: pd.DataFrame) -> None:
    work = STEPS["LU speeding up with d"].flops(1000)
    exact = (2 * work[2] + 3 * work[3]) / work.sum()
    assert judged.loc["LU speeding up with d", "flop_exponent"] == pytest.approx(exact, abs=0.001)


def test_intervals_cover_and_no_word_is_wrong() -> None:
    """A few of the runs that ``python -m tests.analysis.simulated`` does a thousand of."""
    for noise, seeds in ((0.03, 2), (0.07, 1), (0.18, 3)):
        found = share_runs(range(20), noise, seeds)
        assert not found.loc[found["dim"] == 1000, "wrong"].any()
        assert found.loc[found["inside"], "covered"].mean() >= 0.91
        assert (found.loc[found["truth"] == 0, "cubic_high"] == 0).all()


def test_a_machine_is_told_whether_blocks_or_processes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks off by a twentieth, processes alike: one spread of all log odds covers a large share far too seldom."""
    rng, wide = np.random.default_rng(0), {"small": Step(0.15), "middle": Step(0.3), "large": Step(0.9)}
    runs = [table(wide, noise=0.01, block_noise=0.05, seeds=3, rng=rng) for _ in range(60)]

    def covered() -> float:
        found = pd.concat([cubic_shares(run) for run in runs])
        found = found[(found["optimizer"] == "large") & (found["dim"] == 1000)]
        return float(((found["cubic_low"] <= 0.9) & (found["cubic_high"] >= 0.9)).mean())

    assert covered() >= 0.85
    monkeypatch.setattr(cubic_work, "BLOCKS", (0.0,))
    assert covered() < 0.8
