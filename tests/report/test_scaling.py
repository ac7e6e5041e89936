"""The section on scaling, of simulated steps whose work is known: the answer, its pictures, its sentences."""

import re

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis import cubic_work
from stepscale.bench.report import page, scaling_findings, scaling_section
from stepscale.bench.report import scaling_tables as tables
from stepscale.bench.report.page import Section
from stepscale.bench.report.scaling_tables import Judged
from tests.support.known_work import DIMS
from tests.support.reported import NAIVE, STEPS, numbers


@pytest.fixture(scope="module")
def section(judged: Judged) -> Section:
    return scaling_section.section(judged, lambda machine: "a machine")


def main_table(judged: Judged) -> pd.DataFrame:
    return next(iter(tables.headlines(judged).values())).set_index("optimizer")


def test_the_headline_has_a_row_an_optimizer_and_holds_the_truth(judged: Judged) -> None:
    shown = main_table(judged)
    assert sorted(shown.index) == sorted([*STEPS, "naive"])
    assert list(shown) == ["dim", "ms a step", "against layerwise", "growth by count", "growth by clock", "MiB"]
    for name, word in (("relative", "no cubic work"), ("relative_adam", "no cubic work")):
        assert shown.loc[name, "growth by clock"].text == word
        assert shown.loc[name, "growth by count"].text == "d^2.00"
    for name, word in (("layerwise", "cubic"), ("kfac", "partly cubic")):
        found = re.fullmatch(rf"{word} [\d.]+ % \[([\d.]+), ([\d.]+)\]", shown.loc[name, "growth by clock"].text)
        assert found and float(found[1]) - 1 <= 100 * STEPS[name].cubic_share(1000) <= float(found[2]) + 1
    truth = STEPS["layerwise"].seconds(1000).sum() / STEPS["relative"].seconds(1000).sum()
    factor, low, high = numbers(shown.loc["relative", "against layerwise"].text)
    assert "× faster" in shown.loc["relative", "against layerwise"].text
    assert low - 0.1 <= truth <= high + 0.1 and factor == pytest.approx(truth, rel=0.05)
    assert shown.loc["layerwise", "against layerwise"].text == "the baseline"
    slower = NAIVE["naive"].seconds(256).sum() / STEPS["layerwise"].seconds(256).sum()
    assert shown.loc["naive", "dim"].text == "256"
    assert "× slower" in shown.loc["naive", "against layerwise"].text
    assert numbers(shown.loc["naive", "against layerwise"].text)[0] == pytest.approx(slower, rel=0.1)


def test_the_fastest_of_those_that_go_furthest_stands_first(judged: Judged) -> None:
    shown = main_table(judged)
    assert [shown["dim"].iloc[k].key for k in (0, -1)] == [1000, 256]
    assert shown["ms a step"].iloc[:-1].map(lambda cell: cell.key).is_monotonic_increasing


def test_a_share_of_another_dim_than_the_rows_says_so(judged: Judged) -> None:
    growth = judged.growth.assign(dim_max=512)
    shown = main_table(judged._replace(growth=growth))
    assert shown.loc["layerwise", "growth by clock"].text.endswith("] at dim 512")
    assert shown.loc["relative", "growth by clock"].text == "no cubic work"


def test_other_groups_have_a_table_of_their_own(judged: Judged) -> None:
    titled = tables.headlines(judged)
    assert [("batch" in shown, len(shown)) for shown in titled.values()] == [(False, 6), (True, 2)]
    assert next(iter(titled)) == "flow, depth 2, batch 100, photos, float32, cpu, CPU time"


@pytest.mark.parametrize(
    ("verdict", "factor", "low", "high", "words"),
    [
        ("faster", 3.412, 3.06, 3.77, "3.4× faster [3.1, 3.8]"),
        ("slower", 0.25, 0.2, 0.3125, "4.0× slower [3.2, 5.0]"),
        ("equal", 1.01, 0.99, 1.03, "equal within 5 %"),
        ("undecided", 1.02, 0.96, 1.09, "undecided, 1.02× [0.96, 1.09]"),
    ],
)
def test_a_factor_in_words(verdict: str, factor: float, low: float, high: float, words: str) -> None:
    assert tables.in_words({"verdict": verdict, "factor": factor, "low": low, "high": high}) == words


def test_the_summary_is_short_and_no_number_is_none(section: Section) -> None:
    summary = page.markdown([section], "a machine")
    assert len(summary.splitlines()) < 120
    html = page.page([section], [[]], "a machine")
    for laid_out in (summary, html[html.index("<h1>") : html.index("<script>")], page.text(section)):
        assert not re.search(r"\b(nan|None|inf)\b", laid_out)


def test_the_terminal_ends_with_the_answer(section: Section) -> None:
    said = page.text(section)
    findings, answer = said.index("- **No cubic work**"), said.index("flow, depth 2, batch 100")
    assert findings < answer
    assert re.search(r"relative +1000 .*× faster.* d\^2\.00 +no cubic work", said[answer:])
    assert max(map(len, said[answer:].splitlines())) <= 120


def test_findings_tell_growth_first_then_who_is_faster(judged: Judged) -> None:
    found = scaling_findings.findings(judged)
    assert found[0].startswith(
        "**No cubic work**, batch 100: `relative`, `relative_adam` (FLOPs grow as d^2.00, quadratic)"
    )
    assert found[1].startswith("**Partly cubic**, batch 100: `kfac` (")
    assert found[2].startswith("**Cubic**, batch 100: `naive` (")
    assert re.search(
        r"`layerwise` \(\d+ % \[\d+, \d+\] of a step at dim 1000, half of it from dim \d+ on, FLOPs", found[2]
    )
    assert re.fullmatch(
        r"`relative` is faster than `layerwise` throughout, .*× \(dims 64–1000, batch 100\)\.", found[3]
    )
    assert any(
        re.match(r"`layerwise` is faster than `naive` at 2 of 3 dims, [\d.]+–[\d.]+×, else", line) for line in found
    )
    place = next(k for k, line in enumerate(found) if line.startswith("**No cubic work**, batch 10:"))
    assert place > next(k for k, line in enumerate(found) if "`relative` is faster than `layerwise` throughout" in line)
    assert "1 of 65 cells: too_slow." in found


def test_a_range_of_factors_holds_the_truth(judged: Judged) -> None:
    line = next(line for line in scaling_findings.findings(judged) if line.startswith("`relative` is faster"))
    low, high = numbers(line.split("throughout, ")[1].split("×")[0].replace("–", " "))
    truth = [STEPS["layerwise"].seconds(dim).sum() / STEPS["relative"].seconds(dim).sum() for dim in DIMS]
    assert (low, high) == pytest.approx((min(truth), max(truth)), rel=0.05)
    told = scaling_findings.pairs(judged)["pair"]  # of which none is a baseline, too
    low, high = numbers(next(line for line in told if line.startswith("relative is faster than kfac")).split("(")[0])
    truth = [STEPS["kfac"].seconds(dim).sum() / STEPS["relative"].seconds(dim).sum() for dim in DIMS]
    assert (low, high) == pytest.approx((min(truth), max(truth)), rel=0.05)


def crossing(judged: Judged, **row: object) -> list[str]:
    """Sentences on one pair of the main group that is made to be something."""
    own = tables.of_group(judged.crossovers, tables.groups(judged.cells)[0])
    made = own[(own["faster"] == "relative") & (own["slower"] == "layerwise")].assign(**row)
    return scaling_findings.pairs(judged._replace(crossovers=made))["pair"].tolist()


def test_pairs_are_told_in_sentences(judged: Judged) -> None:
    assert crossing(judged, kind="crossover", low=96.0, high=192.0, at=130.0) == [
        "relative overtakes layerwise between dim 96 and 192, batch 100."
    ]
    assert crossing(judged, kind="equal") == ["relative and layerwise: equal within 5 % (dims 64–1000, batch 100)."]
    assert crossing(judged, kind="undecided") == ["relative and layerwise: undecided (dims 64–1000, batch 100)."]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            {"kind": "equal", "decided": 1},
            "relative and layerwise: equal within 5 % at 1 of 5 dims, elsewhere undecided",
        ),
        ({"decided": 3, "equal": 0}, "relative is faster than layerwise at 3 of 5 dims, 2–4×, elsewhere undecided"),
        (
            {"decided": 3, "equal": 2},
            "relative is faster than layerwise at 3 of 5 dims, 2–4×, elsewhere equal within 5 %",
        ),
        (
            {"decided": 3, "equal": 1},
            "relative is faster than layerwise at 3 of 5 dims, 2–4×, elsewhere equal within 5 % or undecided",
        ),
    ],
)
def test_what_a_pair_is_at_the_other_dims_is_told(judged: Judged, made: dict[str, object], said: str) -> None:
    assert crossing(judged, factor_min=2.0, factor_max=4.0, **made) == [f"{said} (dims 64–1000, batch 100)."]


def test_the_range_of_a_pair_is_of_the_gaps_that_decide_it(cells: pd.DataFrame, judged: Judged) -> None:
    """A further seed of one alone says nothing of the difference, however slow it was. Neither is a baseline."""
    own = cells[(cells["optimizer"] == "relative") & (cells["batch"] == 100) & (cells["seed"] == 0)]
    slow = own.assign(seed=7, turns=None, ratio=20 * own["ratio"], step_ms=20 * own["step_ms"])
    more = tables.judge(pd.concat([cells, slow], ignore_index=True))

    def line(of: Judged) -> str:
        told = scaling_findings.pairs(of)["pair"]
        return next(line for line in told if line.startswith("relative is faster than kfac"))

    assert line(more) == line(judged)


def test_every_pair_is_told_once(judged: Judged) -> None:
    told = " ".join(scaling_findings.pairs(judged)["pair"])
    assert len(re.findall(r"\w+ (?:is faster than|overtakes|and) \w+", told)) == 6 * 5 // 2 + 1


def test_the_fit_is_named_where_it_disagrees(judged: Judged) -> None:
    assert not any("fit" in line for line in scaling_findings.findings(judged))
    at = judged.growth["optimizer"] == "layerwise"
    for disagrees in (False, np.False_):
        growth = judged.growth.assign(fit_agrees=judged.growth["fit_agrees"].astype(object).mask(at, disagrees))
        growth.loc[at, ["fit_share", "fit_low", "fit_high"]] = (0.3, 0.2, 0.4)
        (line,) = [
            line
            for line in scaling_findings.findings(judged._replace(growth=growth))
            if line.startswith("The fit of times against dim disagrees about `layerwise`, batch 100")
        ]
        assert "reads 30 % [20, 40] of a step at dim 1000 as cubic" in line
        shown = tables.growth_table(growth).set_index(["optimizer", "batch"])["cubic by the fit of times"]
        assert shown["layerwise", 100].text == "30 % [20, 40], disagrees"


def test_the_undecided_are_told_by_count_and_by_clock(judged: Judged) -> None:
    at = judged.growth["optimizer"] == "kfac"
    growth = judged.growth.copy()
    growth.loc[at, ["verdict", "cubic_share", "cubic_low", "cubic_high"]] = ("undecided", 0.24, 0.2, 0.28)
    changed = judged._replace(growth=growth)
    (line,) = [line for line in scaling_findings.findings(changed) if line.startswith("**Undecided**")]
    assert re.search(r"`kfac` \(24 % \[20, 28\] of a step at dim 1000, FLOPs grow as d\^2\.\d\d\)", line)
    assert main_table(changed).loc["kfac", "growth by clock"].text == "undecided 24 % [20, 28]"


def test_what_has_no_limit_is_compared_by_its_time(cells: pd.DataFrame) -> None:
    free = cells.assign(ratio=np.nan, limit_ms=np.nan, limit_flops=np.nan)
    judged = tables.judge(free)
    found = scaling_findings.findings(judged)
    assert any("64 of 64 cells have no limit" in line for line in found)
    assert any(re.match(r"`relative` is faster than `layerwise` throughout, [\d.]+–[\d.]+×", line) for line in found)
    drawn = scaling_section.figures(judged, str)[1].figure
    assert [ax.get_title() for ax in drawn.axes if "limit" in ax.get_title()] == []
    assert not re.search(r"\bnan\b", page.page([scaling_section.section(judged, str)], [[]], "").split("<script>")[0])
    assert "step / limit" not in tables.times_table(judged.times)


def test_a_step_of_faster_products_than_torchs_has_no_limit(cells: pd.DataFrame) -> None:
    at = cells["optimizer"].eq("relative") & cells["dim"].eq(cells["dim"].max())
    faster = cells.assign(ratio=cells["ratio"].mask(at), limit_ms=cells["limit_ms"].mask(at))
    found = scaling_findings.findings(tables.judge(faster))
    (line,) = [line for line in found if "by other code" in line]
    assert line.startswith(f"In {at.sum()} of {cells['status'].eq('ok').sum()} cells the step of `relative` takes less")
    assert not any("it is not known which products" in line for line in found)


def test_what_was_not_counted_says_so(cells: pd.DataFrame) -> None:
    """As records of before operations were timed one by one."""
    old = cells.assign(shares=None, cubic_share=np.nan, flop_exponent=np.nan, cubic_operations=None, order_flops=None)
    judged = tables.judge(old)
    shown = main_table(judged)
    assert set(shown["growth by clock"].map(lambda cell: cell.text)) == {"not counted"}
    assert set(shown["growth by count"].map(lambda cell: cell.text)) == {"not counted"}
    first = scaling_findings.findings(judged)[0]
    assert first.startswith("**Not counted**, batch 100: `adam`, ")
    assert first.endswith("or they are of an older version.")
    assert [drawn.stem for drawn in scaling_section.figures(judged, str)] == ["scaling", None]


UNKNOWN: dict[str, object] = {"uncounted": "_linalg_svd", "cubic_share": 0.0, "cubic_operations": None}
ONE_DIM: dict[str, object] = {"shares": None, "order_flops": None, "flop_exponent": np.nan, "cubic_operations": None}
GROWS = r" \(FLOPs grow as d\^2\.\d\d"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (UNKNOWN, GROWS + r", not counting _linalg_svd\)\. Of _linalg_svd it is not known how the work grows, or"),
        (UNKNOWN | {"flops": 0.0, "flop_exponent": np.nan}, r" \(not counting _linalg_svd\)\. Of _linalg_svd it is"),
        (ONE_DIM, r"\. How their work grows is not known, since it was logged at one dim only: "),
        (
            ONE_DIM | {"flops": np.nan, "operations": np.nan},
            r"\. Their operations could not be logged: the note `counts`",
        ),
        (
            {"shares": None},
            GROWS + r", cubic by count: lu_factor_ex, lu_solve\)\. Which share of the time is cubic is not known: their"
            " operations were not timed one by one",
        ),
    ],
)
def test_why_a_step_has_no_verdict_is_told(cells: pd.DataFrame, made: dict[str, object], said: str) -> None:
    at = (cells["optimizer"] == "kfac") & (cells["batch"] == 100)
    own = cells[at].assign(**{"cubic_share": np.nan} | made)
    changed = pd.concat([cells[~at], own], ignore_index=True)
    (line,) = [line for line in scaling_findings.findings(tables.judge(changed)) if line.startswith("**Not counted**")]
    assert re.match(r"\*\*Not counted\*\*, batch 100: `kfac`" + said, line)


def test_each_reason_to_have_no_verdict_has_a_line_of_its_own(judged: Judged) -> None:
    growth = judged.growth.assign(verdict="not counted", cubic_operations="", cubic_share=np.nan)
    growth["flop_exponent"] = growth["flop_exponent"].mask(growth["optimizer"] == "kfac")
    found = scaling_findings.findings(judged._replace(growth=growth))
    own = [line.split(". ")[1][:20] for line in found if line.startswith("**Not counted**, batch 100")]
    assert own == ["Which share of the t", "How their work grows"]


def test_a_budget_that_all_that_was_measured_keeps_says_so(judged: Judged) -> None:
    csv = tables.growth_csv(judged.growth, judged.times)
    shown = tables.budgets_table(csv, judged.times).set_index(["batch", "optimizer"])
    assert shown.loc[(100, "relative"), "1024 MiB"].text == "≥ 1000, the largest measured"
    assert shown.loc[(100, "naive"), "1 ms"].text == "64" or shown.loc[(100, "naive"), "1 ms"].text.startswith("< 64")
    tight = tables.budgets_table(csv.assign(dim_in_1_ms=np.nan), judged.times).set_index(["batch", "optimizer"])
    assert tight.loc[(100, "relative"), "1 ms"].text == "< 64, the smallest measured"
    assert shown.loc[(100, "relative"), "10 ms"].text == str(
        max(dim for dim in DIMS if STEPS["relative"].seconds(dim).sum() < 10e-3)
    )


def test_more_seeds_are_asked_for_only_where_they_lack(cells: pd.DataFrame) -> None:
    def advice(changed: pd.DataFrame) -> str:
        return " ".join(scaling_findings.findings(tables.judge(changed)))

    assert "seed=0,1" not in advice(cells) and "quieter" not in advice(cells)
    assert "seed=0,1" in advice(cells[cells["seed"] == 0])
    disturbed = advice(cells.assign(contended=cells["status"] == "ok"))
    assert "seed=0,1" not in disturbed and "Measure again on a quieter machine" in disturbed


def test_endless_work_is_named(cells: pd.DataFrame) -> None:
    found = scaling_findings.findings(tables.judge(cells.assign(repeats=cells["optimizer"] != "kfac")))
    assert any(line.startswith("The work of `kfac` does not repeat after a period") for line in found)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, ["Timed by the wall clock, since it waits or uses several cores: the step of `kfac`."]),
        ({"threads": 2}, []),
        ({"device": "cuda"}, []),
        ({"order_flops": None}, []),  # as of records that do not name their clock
    ],
)
def test_the_wall_clock_is_explained_only_where_there_was_a_choice(
    cells: pd.DataFrame, made: dict[str, object], said: list[str]
) -> None:
    at = cells["optimizer"] == "kfac"
    own = cells[at].assign(**{"clock": "wall", "threads": 1} | made)
    found = scaling_findings.findings(tables.judge(pd.concat([cells[~at], own], ignore_index=True)))
    assert [line for line in found if "wall clock" in line] == said


def test_orders_from_one_to_four_are_named_and_quartic_work_is_told(judged: Judged) -> None:
    growth = judged.growth.iloc[:1]
    told = {1.02: "FLOPs grow as d^1.02, linear", 2.5: "FLOPs grow as d^2.50)", 3.96: "d^3.96, quartic"}
    for exponent, said in told.items():
        rows = growth.assign(flop_exponent=exponent, quartic=0.0).to_dict("records")
        assert re.search(re.escape(said), f"({scaling_findings._details(rows[0])})")
    row = growth.assign(flop_exponent=2.97, quartic=0.07).to_dict("records")[0]
    assert "FLOPs grow as d^2.97, cubic, 7 % of them in work that grows as d⁴" in scaling_findings._details(row)


def test_the_share_of_quartic_work_is_counted() -> None:
    orders = pd.Series([{2: 1.0, 4: 3.0}, {2: 1.0, 5: 1.0}, None])
    assert cubic_work._quartic(orders) == pytest.approx((0.75 + 0.5) / 2)
    assert cubic_work._quartic(pd.Series([None], dtype=object)) == 0
