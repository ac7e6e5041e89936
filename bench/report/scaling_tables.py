"""What a run's timed cells tell, as tables for people: the answer first, then everything else."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from stepscale.bench.analysis import cubic_work, factors, step_times
from stepscale.bench.analysis.baselines import HONEST, base
from stepscale.bench.analysis.crossovers import crossovers
from stepscale.bench.records.schema import GROUP
from stepscale.bench.report.page import Shown, TableRow, measured, number, percent

PER_GROUP = list(GROUP)
BUDGETS_MS, BUDGETS_MIB = (1, 10, 100), (1024,)
NOT_COUNTED, NOT_JUDGED = "not counted", "nothing to judge"  # the latter where no cell could be used
UNLOGGED, ONE_DIM, UNTIMED = "unlogged", "one dim", "untimed"  # what a verdict or a share can lack
CLOCKS = {"cpu": "CPU time", "wall": "wall time", "cuda": "time of the GPU"}
PLAIN_VERDICTS = ("no cubic work", NOT_COUNTED, NOT_JUDGED)  # beside which no share stands


class Judged(NamedTuple):
    """A run's cells and all that the analysis says of them; every table is of the whole run."""

    cells: pd.DataFrame
    times: pd.DataFrame
    slopes: pd.DataFrame
    shares: pd.DataFrame
    cubic: pd.DataFrame
    growth: pd.DataFrame
    factors: pd.DataFrame
    crossovers: pd.DataFrame


def judge(cells: pd.DataFrame) -> Judged:
    """Ask every function of the analysis once a machine: how one's processes vary says nothing of another's."""
    parts = [_judged(own) for _, own in cells.groupby("machine", sort=False)]
    joined = [[table for table in tables if len(table)] or tables[:1] for tables in zip(*parts, strict=True)]
    return Judged(*(pd.concat(tables, ignore_index=True) if len(parts) > 1 else tables[0] for tables in joined))


def _judged(cells: pd.DataFrame) -> Judged:
    """Ask every function of the analysis about the cells of one machine."""
    return Judged(
        cells,
        step_times.times(cells),
        step_times.local_slopes(cells),
        cubic_work.shares(cells),
        cubic_work.cubic_shares(cells),
        cubic_work.growth(cells),
        factors.factors(cells),
        crossovers(cells),
    )


def groups(cells: pd.DataFrame) -> list[tuple[object, ...]]:
    """Return the values of ``GROUP`` that there are, those of most cells first."""
    return list(cells.groupby(PER_GROUP, sort=False).size().sort_values(ascending=False, kind="stable").index)


def main_groups(cells: pd.DataFrame) -> list[tuple[object, ...]]:
    """Return each machine's group of most cells."""
    first: dict[object, tuple[object, ...]] = {}
    for group in groups(cells):
        first.setdefault(facts(group)["machine"], group)
    return list(first.values())


def of_group(table: pd.DataFrame, group: tuple[object, ...]) -> pd.DataFrame:
    """Return a table's rows of one group."""
    return table[(table[PER_GROUP] == list(group)).all(axis=1)]


def words(group: tuple[object, ...], cells: pd.DataFrame) -> str:
    """Say what was measured: ``flow, depth 2, batch 100, photos, float32, cpu``; of several machines on which, too."""
    what = "{model}, depth {depth}, batch {batch}, {data}, {dtype}, {device}".format(**facts(group))
    return f"{what}, {facts(group)['machine']}" if cells["machine"].nunique() > 1 else what


def facts(group: tuple[object, ...]) -> dict[str, object]:
    """Return a group's values by axis."""
    return dict(zip(PER_GROUP, group, strict=True))


def clocks(cells: pd.DataFrame) -> str:
    """Say by which clock cells were timed; the clock of most cells first."""
    return " and ".join(CLOCKS[clock] for clock in cells["clock"].value_counts().index)


def headlines(judged: Judged) -> dict[str, pd.DataFrame]:
    """Return the table that answers, of each machine's group with most cells, and one of all other groups."""
    main, titled = main_groups(judged.cells), {}
    for group in main:
        title = ", ".join(filter(None, [words(group, judged.cells), clocks(of_group(judged.cells, group))]))
        titled[title] = pd.DataFrame(headline(judged, group))
    rows = [
        {axis: facts(group)[axis] for axis in PER_GROUP if judged.cells[axis].nunique() > 1} | row
        for group in groups(judged.cells)
        if group not in main
        for row in headline(judged, group)
    ]
    if rows:
        titled["Other configurations"] = pd.DataFrame(rows).fillna("")
    return titled


def headline(judged: Judged, group: tuple[object, ...]) -> list[TableRow]:
    """One row an optimizer of a group, at its largest measured dim; those that go furthest come first."""
    times, growth = of_group(judged.times, group), of_group(judged.growth, group).set_index("optimizer")
    own = of_group(judged.factors, group)
    baseline = baseline_of(own)
    rows = []
    for name, part in times.groupby("optimizer"):
        known = part[part["ok"] > 0].sort_values("dim")
        verdict = growth.loc[name].to_dict() if name in growth.index else {}
        row: TableRow = {"optimizer": name} | _at_the_largest(known if len(known) else part)
        if baseline:
            row[f"against {baseline}"] = _against(own, str(name), baseline, row["dim"].key)
        clock = by_clock(verdict)
        if clock.key > 0 and verdict["dim_max"] != row["dim"].key:
            clock = clock._replace(text=f"{clock.text} at dim {verdict['dim_max']}")
        row |= {"growth by count": by_count(verdict), "growth by clock": clock, "MiB": row.pop("MiB")}
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["dim"].key, math.isnan(row["ms a step"].key), row["ms a step"].key))


def _at_the_largest(part: pd.DataFrame) -> TableRow:
    row = part.iloc[-1]
    return {
        "dim": Shown(str(row["dim"]), float(row["dim"])),
        "ms a step": Shown(_milliseconds(row.to_dict()), row["step_ms"]),
        "MiB": Shown(number(row["peak_mib"]), row["peak_mib"]),
    }


def _milliseconds(row: TableRow) -> str:
    if math.isnan(row["step_ms"]):
        return str(row["status"]).replace("_", " ")
    flag = " contended" * row["disturbed"] + " waits for the host" * row["launch_bound"]
    return measured(row["step_ms"], row["step_ms_low"], row["step_ms_high"]) + flag


def baseline_of(own: pd.DataFrame) -> str | None:
    """Return the baseline of a group's factors: the honest one, where it is there."""
    names = sorted(own["baseline"].unique(), key=lambda name: (base(name) != HONEST, name))
    return names[0] if names else None


def _against(own: pd.DataFrame, name: str, baseline: str, dim: float) -> Shown:
    """Say how many times as fast or as slow an optimizer is as the baseline, at the largest dim both have."""
    if name == baseline:
        return Shown("the baseline", 1.0)
    both = own[(own["optimizer"] == name) & (own["baseline"] == baseline)].sort_values("dim")
    if not len(both):
        return Shown("", math.nan)
    row = both.iloc[-1]
    elsewhere = f" at dim {row['dim']}" if row["dim"] != dim else ""
    return Shown(in_words(row.to_dict()) + elsewhere, row["factor"])


def in_words(row: TableRow) -> str:
    """Write a row of ``factors``: ``10× faster [9, 11]``, ``52× slower [50, 55]``, ``equal within 5 %``."""
    factor, low, high = row["factor"], row["low"], row["high"]
    if row["verdict"] == "equal":
        return "equal within 5 %"
    if row["verdict"] == "undecided":
        return f"undecided, {measured(factor, low, high, '×')}"
    if row["verdict"] == "slower":
        factor, low, high = 1 / factor, 1 / high, 1 / low if low else math.inf
    return measured(factor, low, high, f"× {row['verdict']}")


def by_count(row: TableRow) -> Shown:
    """How the counted FLOPs grow at the largest dim, exactly."""
    exponent = row.get("flop_exponent", math.nan)
    if math.isnan(exponent):
        return Shown(NOT_COUNTED, math.nan)
    return Shown(f"d^{exponent:.2f}" + ", some uncounted" * bool(row["uncounted"]), exponent)


def by_clock(row: TableRow) -> Shown:
    """The verdict, with the share of the step that is in cubic work."""
    verdict, share = row.get("verdict", NOT_JUDGED), row.get("cubic_share", math.nan)
    if verdict in PLAIN_VERDICTS or math.isnan(share):
        return Shown(str(verdict), 0.0 if verdict == PLAIN_VERDICTS[0] else math.nan)
    return Shown(f"{verdict} {percent(share, row['cubic_low'], row['cubic_high'])}", share)


def lacking(row: TableRow, times: pd.DataFrame) -> str:
    """Say what is missing of an optimizer whose shares by order are not known: a row of ``growth``, and its ``times``.

    ``UNLOGGED``: what operations there are; ``ONE_DIM``: how they grow; ``UNTIMED``: what each of them takes.
    """
    (at,) = times[(times["optimizer"] == row["optimizer"]) & (times["dim"] == row["dim_max"])].to_dict("records")
    if math.isnan(at["operations"]):
        return UNLOGGED
    # without FLOPs there is no exponent either
    return ONE_DIM if math.isnan(row["flop_exponent"]) and at["flops"] > 0 else UNTIMED


def growth_csv(growth: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Verdicts and exponents, and the largest measured dim within each budget."""
    everyone = times.groupby([*PER_GROUP, "optimizer"]).size().index
    table = growth.set_index([*PER_GROUP, "optimizer"]).reindex(everyone)
    table["verdict"] = table["verdict"].fillna(NOT_JUDGED) if len(growth) else NOT_JUDGED
    for budget in BUDGETS_MS:
        table[f"dim_in_{budget}_ms"] = step_times.within_budget(times, "step_ms", budget)
    for budget in BUDGETS_MIB:
        table[f"dim_in_{budget}_MiB"] = step_times.within_budget(times, "peak_mib", budget)
    table["largest_dim"] = step_times.within_budget(times, "step_ms", math.inf)
    return table.reset_index()


def growth_table(growth: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer): how it grows by count and by clock, and what the fit of times says beside it."""
    rows = [
        {axis: row[axis] for axis in PER_GROUP}
        | {
            "optimizer": row["optimizer"],
            "dims": f"{row['dim_min']}–{row['dim_max']}",
            "by count": by_count(row),
            "by clock": by_clock(row),
            "half of the step is cubic from dim": Shown(number(row["half_dim"]), row["half_dim"]),
            "cubic operations": row["cubic_operations"],
            "uncounted": row["uncounted"],
            "exponent no whole number": row["inexact"],
            "cubic by the fit of times": _fit(row),
        }
        for row in growth.to_dict("records")
    ]
    table = pd.DataFrame(rows, columns=None if rows else [*PER_GROUP, "optimizer"])
    return table.drop(columns=[name for name in table if table[name].map(_is_empty).all()])


def cubic_table(cubic: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Share of cubic work with its interval at every dim: a row a dim, a column an optimizer."""
    said = [
        "0" if row["cubic_high"] == 0 else percent(row["cubic_share"], row["cubic_low"], row["cubic_high"])
        for row in cubic.to_dict("records")
    ]
    index = [column for column in PER_GROUP if cells[column].nunique() > 1]
    table = cubic.assign(said=said).pivot(index=[*index, "dim"], columns="optimizer", values="said").fillna("")
    return table.rename_axis(columns=None).reset_index()


def _is_empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, Shown) and not value.text) or value != value


def _fit(row: TableRow) -> Shown:
    if math.isnan(row["fit_share"]):
        return Shown("", math.nan)
    against = ", disagrees" if disagrees(row) else ""
    return Shown(percent(row["fit_share"], row["fit_low"], row["fit_high"]) + against, row["fit_share"])


def disagrees(row: TableRow) -> bool:
    """Tell whether there is a fit of times, and one that reads another share than the operations have."""
    return row["fit_agrees"] is not None and not row["fit_agrees"]


def budgets_table(judged: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """The largest measured dim within each budget, and whether the budget or what was measured bounds it."""
    key = [*PER_GROUP, "optimizer"]
    smallest = times.dropna(subset=["step_ms"]).groupby(key)["dim"].min().rename("smallest")
    table = judged.merge(smallest, left_on=key, right_index=True)
    titles = {name: str(name).removeprefix("dim_in_").replace("_", " ") for name in judged if "dim_in_" in str(name)}
    rows = [
        {axis: row[axis] for axis in key}
        | {title: _within(row[name], row["smallest"], row["largest_dim"]) for name, title in titles.items()}
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=[*key, *titles.values()])


def _within(dim: float, smallest: float, largest: float) -> Shown:
    if math.isnan(dim):
        return Shown(f"< {smallest:.0f}, the smallest measured", 0.0)
    return Shown(f"≥ {dim:.0f}, the largest measured" if dim == largest else f"{dim:.0f}", dim)


def overview(times: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a step and, in brackets, times the limit: a row a dim, a column an optimizer."""
    shown = times.assign(cell=pd.Series(map(_overview_cell, times.to_dict("records")), times.index))
    index = [column for column in PER_GROUP if cells[column].nunique() > 1]
    table = shown.pivot(index=[*index, "dim"], columns="optimizer", values="cell").fillna("")
    return table.rename_axis(columns=None).reset_index()


def _overview_cell(row: TableRow) -> Shown | str:
    if math.isnan(row["step_ms"]):
        return str(row["status"]).replace("_", " ")
    flag = " contended" * row["disturbed"] + " waits for the host" * row["launch_bound"]
    ratio = "" if math.isnan(row["ratio"]) else f" ({number(row['ratio'])}×)"
    return Shown(f"{number(row['step_ms'])}{ratio}{flag}", row["step_ms"])


def factors_table(found: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast as each baseline, with intervals: a row a dim, a column an optimizer."""
    if not len(found):
        return found
    rows = [
        row
        | {
            "cell": Shown(measured(row["factor"], row["low"], row["high"]), row["factor"]),
            "d/B": Shown(f"{row['dim'] / row['batch']:.3g}", row["dim"] / row["batch"]),
        }
        for row in found.to_dict("records")
    ]
    shown = pd.DataFrame(rows)
    shown = shown[shown["optimizer"] != shown["baseline"]]
    table = shown.pivot(index=[*PER_GROUP, "baseline", "dim", "d/B"], columns="optimizer", values="cell").fillna("")
    return table.rename_axis(columns=None).reset_index()


def times_table(times: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim) with what is asked of most often; ``times.csv`` holds the rest."""
    rows = [
        {axis: row[axis] for axis in [*PER_GROUP, "optimizer", "dim"]}
        | {
            "ms a step": Shown(_milliseconds(row), row["step_ms"]),
            "cheapest, ms": row["cheap_ms"],
            "dearest, ms": row["peak_ms"],
            "period": row["period"],
            "limit, ms": row["limit_ms"],
            "step / limit": Shown(measured(row["ratio"], row["ratio_low"], row["ratio_high"]), row["ratio"]),
            "MiB": row["peak_mib"],
            "J": row["energy_j"],
            "MFLOP": row["flops"] * 1e-6,
            "log det": row["log_det"],
            "cosine": row["cosine"],
            "seeds": f"{row['ok']} of {row['seeds']}",
            "composed": "yes" if row["composed"] else "",
            "reason": row["reason"],
        }
        for row in times.to_dict("records")
    ]
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in table if table[name].map(_is_empty).all()])


def phases(cells: pd.DataFrame) -> pd.DataFrame:
    """Median over seeds of each phase's milliseconds a step, amortised over its period."""
    key = [*PER_GROUP, "optimizer", "dim"]
    known = cells[cells["phases_ms"].notna()].to_dict("records")
    table = pd.DataFrame([{axis: row[axis] for axis in key} | row["phases_ms"] for row in known])
    return table.groupby(key, as_index=False).median() if len(table) else pd.DataFrame(columns=key)


def dearest_operations(cells: pd.DataFrame) -> pd.DataFrame:
    """Median over seeds of what ``timing.profile`` listed of each step, the dearest first."""
    key = [*PER_GROUP, "dim", "optimizer"]
    profiled = cells[cells["profile"].notna()].to_dict("records")
    table = pd.DataFrame([{axis: cell[axis] for axis in key} | row for cell in profiled for row in cell["profile"]])
    if table.empty:
        return table
    table = table.astype({"calls": float, "device_share": float}).dropna(axis=1, how="all")
    table = table.groupby([*key, "operation"], as_index=False).median()
    table["dearest"] = table.filter(like="_share").max(axis=1)
    return table.sort_values([*key, "dearest"], ascending=[True] * len(key) + [False]).drop(columns="dearest")
