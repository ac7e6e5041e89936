"""The section on scaling, of simulated steps whose work is known: the answer, its pictures, its sentences."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from stepscale.bench.records.tables import FIGURES
from stepscale.bench.report import page, scaling_figures, scaling_findings, scaling_orders, scaling_section, style
from stepscale.bench.report import scaling_tables as tables
from stepscale.bench.report.page import Section
from stepscale.bench.report.scaling_tables import Judged
from tests.support.known_work import DIMS, Step, table

STEPS = {
    "relative": Step(),
    "relative_adam": Step(products=1.25),
    "layerwise": Step(0.74, speeding_up=700),
    "adam": Step(0.74, speeding_up=700),
    "kfac": Step(0.1, products=2.0),
}
NAIVE = {"naive": Step(0.95)}


def with_facts(cells: pd.DataFrame) -> pd.DataFrame:
    """Add what a report shows and no analysis asks for."""
    facts = {"peak_mib": cells["dim"] / 10, "cheap_ms": cells["step_ms"], "peak_ms": cells["step_ms"], "period": 1.0}
    return cells.assign(**facts, composed=False, repeats=True, operations=10.0)


def lost(cells: pd.DataFrame, status: str, dim: int) -> pd.DataFrame:
    """Return the last of the cells as one that was not measured, at another dim."""
    kept = ["model", "data", "batch", "depth", "dtype", "device", "threads", "machine", "optimizer", "seed", "task"]
    row = (
        dict.fromkeys(cells.columns) | cells.iloc[-1][kept].to_dict() | {"dim": dim, "status": status, "reason": "made"}
    )
    return pd.DataFrame([row]).astype(FIGURES)


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    naive = with_facts(table(NAIVE, dims=[64, 128, 256], noise=0.01, drift=0))
    few = table(
        {name: STEPS[name] for name in ("relative", "layerwise")}, dims=[128, 512], noise=0.01, drift=0, batch=10
    )
    few["batch"] = 10
    parts = [with_facts(table(STEPS, noise=0.01, drift=0)), naive, lost(naive, "too_slow", 512), with_facts(few)]
    return pd.concat(parts, ignore_index=True).astype(FIGURES)


@pytest.fixture(scope="module")
def judged(cells: pd.DataFrame) -> Judged:
    return tables.judge(cells)


@pytest.fixture(scope="module")
def section(judged: Judged) -> Section:
    return scaling_section.section(judged, "a machine")


def main_table(judged: Judged) -> pd.DataFrame:
    return next(iter(tables.headlines(judged).values())).set_index("optimizer")


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


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
    assert found[0].startswith("**No cubic work**, batch 100: `relative`, `relative_adam` (FLOPs grow as d^2.00)")
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
    drawn = scaling_section.figures(judged, "")[1].figure
    assert [ax.get_title() for ax in drawn.axes if "limit" in ax.get_title()] == []
    assert not re.search(r"\bnan\b", page.page([scaling_section.section(judged, "")], [[]], "").split("<script>")[0])
    assert "step / limit" not in tables.times_table(judged.times)


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
    assert [drawn.stem for drawn in scaling_section.figures(judged, "")] == ["scaling", None]


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


# pictures


def orders(judged: Judged, **replaced: pd.DataFrame) -> Figure:
    main = tables.groups(judged.cells)[0]
    parts = {name: tables.of_group(getattr(judged, name), main) for name in ("shares", "growth", "times")}
    return scaling_orders.orders_figure(**parts | replaced, title="")


def stack(ax: Axes, dim: float) -> list[float]:
    """Heights of a panel's areas at a dim, from the bottom up."""
    found = []
    for area in ax.collections:
        at = [y for x, y in area.get_paths()[0].vertices if x == dim]
        found.append(max(at) - min(at))
    return found


def test_the_shares_are_stacked_in_order_with_the_cubic_on_top(judged: Judged) -> None:
    panels = {ax.get_title(loc="left").split("\n")[0]: ax for ax in orders(judged).axes}
    for dim in (64, 1000):
        seconds = STEPS["layerwise"].seconds(dim)
        assert stack(panels["layerwise"], dim) == pytest.approx(list(seconds / seconds.sum()), abs=0.05)
        assert len(stack(panels["relative"], dim)) == 3
    assert panels["layerwise"].collections[-1].get_hatch() == "////"
    assert all(area.get_hatch() is None for area in panels["layerwise"].collections[:-1])
    assert [label.get_text().split("\n")[0] for label in panels["naive"].get_xticklabels()] == ["256", "128", "64"]


def test_panels_are_sorted_by_their_cubic_share_which_the_title_says(judged: Judged) -> None:
    titles = [ax.get_title(loc="left") for ax in orders(judged).axes if ax.axison]
    assert titles[0].startswith("naive\n")
    shares = [numbers(title.split("\n")[1])[0] if "%" in title else 0 for title in titles]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0
    assert titles[-1].endswith("no cubic work")


def test_unknown_and_higher_orders_have_looks_of_their_own(judged: Judged) -> None:
    main = tables.groups(judged.cells)[0]
    own = tables.of_group(judged.shares, main)
    some = own[(own["optimizer"] == "layerwise") & (own["order"] == 0)]
    quarters = [some.assign(order=order, share=0.25) for order in (-1, 2, 4, 5)]
    made = pd.concat([own[own["optimizer"] != "layerwise"], *quarters])
    figure = orders(judged, shares=made)
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("layerwise"))
    assert stack(panel, 256) == pytest.approx([0.25, 0.25, 0.5])
    assert [area.get_hatch() for area in panel.collections] == [None, "....", "xxxx"]
    assert "unknown order" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_what_does_not_grow_and_fits(judged: Judged) -> None:
    own = tables.of_group(judged.shares, tables.groups(judged.cells)[0])
    figure = orders(judged, shares=pd.concat([own, *(own.assign(order=order) for order in scaling_orders.LOOKS)]))
    figure.draw_without_rendering()
    texts = figure.legends[0].get_texts()
    assert texts[-1].get_text() == "no growth with d: calls, Python, work outside torch"
    assert len(texts) == len(scaling_orders.LOOKS)
    assert all(0 < text.get_window_extent().x0 < text.get_window_extent().x1 < figure.bbox.x1 for text in texts)


def test_a_panel_without_shares_says_why(judged: Judged) -> None:
    main = tables.groups(judged.cells)[0]
    own = tables.of_group(judged.shares, main)
    figure = orders(judged, shares=own[own["optimizer"] != "kfac"])
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("kfac"))
    assert [text.get_text() for text in panel.texts] == ["its operations were\nnot timed one by one"]
    growth, times = tables.of_group(judged.growth, main), tables.of_group(judged.times, main)
    of_kfac = {"shares": own[own["optimizer"] != "kfac"]}
    for changed, said in (
        ({"growth": growth.assign(flop_exponent=np.nan)}, "its operations were\nlogged at one dim only"),
        ({"times": times.assign(operations=np.nan)}, "its operations\ncould not be logged"),
        ({"growth": growth[growth["optimizer"] != "kfac"]}, "its cells were disturbed,\nor wait for the host"),
    ):
        panels = orders(judged, **of_kfac | changed).axes
        panel = next(ax for ax in panels if ax.get_title(loc="left").startswith("kfac"))
        assert [text.get_text() for text in panel.texts] == [said]
    times = times.assign(
        ok=times["ok"].mask(times["optimizer"] == "kfac", 0),
        status=times["status"].mask(times["optimizer"] == "kfac", "out_of_memory"),
    )
    figure = orders(judged, shares=own[own["optimizer"] != "kfac"], times=times)
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("kfac"))
    assert [text.get_text() for text in panel.texts] == ["out of memory"]


def test_one_dim_is_a_bar(judged: Judged) -> None:
    main = tables.groups(judged.cells)[0]
    own = tables.of_group(judged.shares, main)
    panel = orders(judged, shares=own[own["dim"] == 256]).axes[1]
    assert panel.get_xlim() == pytest.approx((0.8 * 256, 1.25 * 256))
    assert [label.get_text().split("\n")[0] for label in panel.get_xticklabels()] == ["256"]


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return float(
        np.dot(
            [0.2126, 0.7152, 0.0722],
            [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)],
        )
    )


def test_neighbouring_orders_differ_in_grey_or_by_hatching() -> None:
    looks = list(scaling_orders.LOOKS.values())
    for below, above in itertools.pairwise(looks):
        lighter, darker = sorted((luminance(below["facecolor"]), luminance(above["facecolor"])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 1.25 or below.get("hatch") != above.get("hatch")


def scaling(judged: Judged, **replaced: pd.DataFrame) -> Figure:
    main = tables.groups(judged.cells)[0]
    parts = {name: tables.of_group(getattr(judged, name), main) for name in ("times", "slopes")}
    return scaling_figures.scaling_figure(**parts | replaced, look=style.styles(judged.times["optimizer"]), title="")


def test_slopes_have_a_panel_only_where_all_are_narrow(judged: Judged) -> None:
    titles = [ax.get_title() for ax in scaling(judged).axes]
    assert any("slope" in title for title in titles)
    slopes = tables.of_group(judged.slopes, tables.groups(judged.cells)[0]).reset_index(drop=True)
    slopes.loc[0, "low"] = slopes.loc[0, "high"] - 1.01
    assert len(scaling(judged, slopes=slopes).axes) == len(titles) - 1


def curves(ax: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): line.get_data() for line in lines if len(line.get_xdata()) > 1}


def test_guides_meet_no_curve_and_are_named_at_their_ends(judged: Judged) -> None:
    figure = scaling(judged)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    guides = [
        line
        for line in ax.get_lines()
        if line.get_linestyle() == "--" and len(line.get_xdata()) == 2 and line.get_zorder() == 0
    ]
    assert [np.diff(np.log(g.get_ydata()))[0] / np.diff(np.log(g.get_xdata()))[0] for g in guides] == pytest.approx(
        [2, 3]
    )
    for guide in guides:
        along = np.geomspace(*guide.get_xdata(), 20)
        height = np.exp(np.interp(np.log(along), np.log(guide.get_xdata()), np.log(guide.get_ydata())))
        for dims, values in curves(ax).values():
            curve = np.exp(np.interp(np.log(along), np.log(dims), np.log(values), left=np.inf, right=np.inf))
            assert (height < curve).all()
    labels = [text for text in ax.texts if text.get_text() in ("d²", "d³")]
    assert len(labels) == 2
    for label in labels:
        box = label.get_window_extent()
        assert ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1)
        for dims, values in curves(ax).values():
            points = ax.transData.transform(
                np.column_stack(
                    [
                        np.geomspace(dims[0], dims[-1], 200),
                        np.exp(np.interp(np.log(np.geomspace(dims[0], dims[-1], 200)), np.log(dims), np.log(values))),
                    ]
                )
            )
            assert not any(box.contains(x, y) for x, y in points)


def test_names_at_the_ends_of_coinciding_curves_do_not_touch(judged: Judged) -> None:
    figure = scaling(judged)
    figure.draw_without_rendering()
    names = [
        text for text in figure.axes[0].texts if isinstance(text, Annotation) and text.get_text() in {*STEPS, *NAIVE}
    ]
    assert {text.get_text() for text in names} == {*STEPS, *NAIVE}
    boxes = [text.get_window_extent() for text in names if text.get_text() != "naive"]
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] - 1.5 for below, above in itertools.pairwise(heights))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_neighbouring_looks_differ_in_line_marker_and_size() -> None:
    looks = list(style.styles([f"optimizer{k:02d}" for k in range(16)]).values())
    for one, other in itertools.pairwise(looks):
        assert one["marker"] != other["marker"] and one["linestyle"] != other["linestyle"]
        assert one["markersize"] != other["markersize"]


def test_every_figure_says_what_it_shows(judged: Judged, tmp_path: Path) -> None:
    drawn = scaling_section.figures(judged, "")
    assert [figure.stem for figure in drawn] == ["orders", "scaling", None, None]
    for figure in drawn:
        head = style.written(figure, tmp_path).split(">")[0]
        (label,) = re.findall(r'role="img" aria-label="([^"]+)"', head)
        assert label.endswith(".") and "dim" in label
    assert "layerwise: cubic" in drawn[0].alt and "relative: no cubic work" in drawn[0].alt
