"""Several machines -> who is faster than whom on which of them: one table, one figure and a sentence a pair."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stepscale.bench.analysis.baselines import HONEST, base
from stepscale.bench.records.schema import GROUP
from stepscale.bench.report import scaling_figures, style
from stepscale.bench.report.page import Section, TableRow
from stepscale.bench.report.scaling_findings import factor_range, somewhere
from stepscale.bench.report.scaling_tables import Judged, baseline_of
from stepscale.bench.report.style import GUIDE, LINES, RC, WIDTH, Drawn, Style

PLACE = ["machine", "device", "threads"]  # where a step runs; the other axes of a group are what runs
WORKLOAD = [axis for axis in GROUP if axis not in PLACE]
ASKED = "On which machine is which optimizer the faster one?"
OVERTAKES = "overtakes at dim "
Row = dict[str, str]


def section(judged: Judged) -> Section | None:
    """Compare the machines that have a pair of optimizers in common; None where there are none."""
    if judged.cells["machine"].nunique() < 2:
        return None
    named = _named(judged)
    varying = [axis for axis in WORKLOAD if named.crossovers[axis].nunique() > 1]
    workloads = sorted(named.crossovers.groupby(WORKLOAD), key=lambda group: -len(group[1]))
    tables, findings, drawn = dict[str, pd.DataFrame](), list[str](), list[Drawn]()
    for key, pairs in workloads:
        workload = dict(zip(WORKLOAD, key, strict=True))
        what = "{model}, depth {depth}, batch {batch}, {data}, {dtype}".format(**workload)
        rows = compared(pairs)
        if not rows:
            continue
        tables[what] = pd.DataFrame(rows).fillna("")
        place = "".join(f", {axis} {workload[axis]}" for axis in varying)
        findings += [_sentence(row, place) for row in rows]
        own = named.factors[(named.factors[WORKLOAD] == list(key)).all(axis=1)]
        names = sorted(judged.times["optimizer"].unique())
        drawn += _figures(own, style.styles(names), what, None if drawn else "machines")
    if not tables:
        return None
    return Section("Between machines", ASKED, tables, findings, drawn, {}, {}, {})


def _named(judged: Judged) -> Judged:
    """Add ``place`` to factors and crossovers: the machine's name, with its threads where it was asked with several."""
    places = judged.cells[PLACE].drop_duplicates()
    several = places["machine"].value_counts()

    def place(row: TableRow) -> str:
        threads = f", {row['threads']} thread{'s' * (row['threads'] != 1)}"
        return f"{row['machine']}{threads * bool(several[row['machine']] > 1)}"

    found = [
        table.assign(place=pd.Series([place(row) for row in table.to_dict("records")], table.index, dtype=object))
        for table in (judged.factors, judged.crossovers)
    ]
    return judged._replace(factors=found[0], crossovers=found[1])


def compared(pairs: pd.DataFrame) -> list[Row]:
    """One row a pair that several places have, and a column a place; pairs on which the places differ come first.

    They are those with the honest baseline, where it is there.
    """
    by_pair: dict[tuple[str, str], dict[str, list[TableRow]]] = {}
    for row in pairs.to_dict("records"):
        one, other = sorted((row["faster"], row["slower"]), key=lambda name: (base(name) == HONEST, name))
        by_pair.setdefault((one, other), {}).setdefault(row["place"], []).append(row)
    shared = {pair: places for pair, places in by_pair.items() if len(places) > 1}
    honest = {pair: places for pair, places in shared.items() if base(pair[1]) == HONEST}
    found = [
        (len({_direction(one, rows) for rows in places.values()}) == 1, one, other, places)
        for (one, other), places in (honest or shared).items()
    ]
    columns = list(dict.fromkeys(place for *_, places in found for place in places))
    return [
        {"optimizer": one, "against": other} | {at: _told(one, places[at]) for at in columns if at in places}
        for _, one, other, places in sorted(found, key=lambda entry: entry[:3])
    ]


def _direction(one: str, rows: list[TableRow]) -> tuple[str, bool]:
    """Return what a place says of a pair in kind."""
    return rows[-1]["kind"], rows[-1]["faster"] == one


def _told(one: str, rows: list[TableRow]) -> str:
    """Say in a few words what ``one`` is against another on one place: ``overtakes at dim 96–128``."""
    row = rows[0]
    ends = dict.fromkeys([row["dim_min"], row["dim_max"]])
    dims = f"{'dims' if len(ends) > 1 else 'dim'} {'–'.join(map(str, ends))}"
    if row["kind"] == "crossover":
        verb = {True: OVERTAKES, False: "is overtaken at dim "}
        return ", ".join(f"{verb[row['faster'] == one]}{row['low']:g}–{row['high']:g}" for row in rows)
    if row["kind"] == "undecided":
        return f"undecided ({dims})"
    if row["kind"] == "equal":
        return f"equal within 5 %{somewhere(row, 0)} ({dims})"
    word, factor = "faster" if row["faster"] == one else "slower", factor_range(row["factor_min"], row["factor_max"])
    if row["decided"] == row["dims"]:
        return f"{word}, {factor} ({dims})"
    return f"{word}{somewhere(row, row['equal'], f', {factor}')} ({dims})"


def _sentence(row: Row, workload: str) -> str:
    """Say of a pair what it is on each place; places that say the same are named together."""
    same: dict[str, list[str]] = {}
    for place, told in list(row.items())[2:]:
        same.setdefault(told, []).append(place)
    if all(words.startswith(OVERTAKES) for words in same):
        at = [f"at dim {words.removeprefix(OVERTAKES)} on {' and on '.join(places)}" for words, places in same.items()]
        return f"`{row['optimizer']}` overtakes `{row['against']}`{workload} {', '.join(at)}."
    told = "; ".join(f"{words} on {' and on '.join(places)}" for words, places in same.items())
    return f"`{row['optimizer']}` against `{row['against']}`{workload}: {told}."


def _figures(factors: pd.DataFrame, look: dict[str, Style], what: str, stem: str | None) -> list[Drawn]:
    """Draw how many times as fast as the baseline each optimizer is that several places have."""
    baseline = baseline_of(factors)
    shown = factors[(factors["baseline"] == baseline) & (factors["optimizer"] != baseline)]
    shown = shown[shown.groupby("optimizer")["place"].transform("nunique") > 1]
    if not len(shown):
        return []
    places = list(shown["place"].unique())
    lines = {place: LINES[k % len(LINES)] for k, place in enumerate(places)}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        ax = figure.subplots()
        draw_factors(ax, shown, look, lines)
        ax.set(ylabel=f"times as fast as {baseline}", title=f"Times as fast as {baseline}, by machine")
        grey: Style = {"color": "0.25", "linewidth": 1.3}
        handles = [Line2D([], [], **look[name] | {"linestyle": "none"}) for name in sorted(shown["optimizer"].unique())]
        names = sorted(shown["optimizer"].unique())
        figure.legend(handles, names, loc="outside right upper", frameon=False, title="optimizer")
        machines = [Line2D([], [], **grey, linestyle=line) for line in lines.values()]
        figure.legend(machines, places, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(what, fontsize=9)
    told = (
        f"How many times as fast as {baseline} each optimizer is, against dim ({what}), on {' and on '.join(places)}."
    )
    return [Drawn(figure, told, stem)]


def draw_factors(ax: Axes, factors: pd.DataFrame, look: dict[str, Style], lines: dict[str, object]) -> None:
    """Draw factors over a baseline against dim, log-log: the colour is the optimizer's, the line the place's."""
    for (name, place), part in factors.groupby(["optimizer", "place"]):
        own = part.sort_values("dim")
        drawn = look[str(name)] | {"linestyle": lines[str(place)]}
        ax.plot(own["dim"], own["factor"], **drawn)
        ax.fill_between(own["dim"], own["low"], own["high"], color=drawn["color"], alpha=0.12, linewidth=0)
    ax.axhline(1, **GUIDE)
    ax.set(xscale="log", yscale="log")
    scaling_figures.axes_of_dims(ax, factors["dim"], scaling_figures.WIDE)
