"""A run's timing records -> the report's section on how a step's time grows. Imports no torch."""

from __future__ import annotations

import math

import pandas as pd

from stepscale.bench.analysis import baselines, step_times
from stepscale.bench.analysis.crossovers import crossovers as crossovers_of
from stepscale.bench.analysis.cubic_work import growth as growth_of
from stepscale.bench.records.schema import GROUP
from stepscale.bench.report import scaling_figures, scaling_findings, style
from stepscale.bench.report.page import Section, TableRow, varying
from stepscale.bench.report.style import Drawn

PER_GROUP = list(GROUP)
BUDGETS_MS, BUDGETS_MIB = (1, 10, 100), (1024,)
SHOWN = 5  # of each step's operations, in the page


def section(cells: pd.DataFrame, where: str) -> Section:
    """Say what a run's timed cells tell: findings, figures, tables for people and for machines."""
    times, slopes = step_times.times(cells), step_times.local_slopes(cells)
    growth, crossovers = growth_of(cells), crossovers_of(cells)
    glance, judged, operations = overview(times, cells), growth_table(growth, times), dearest_operations(cells)
    titled = {
        "Step, ms (× the limit)": glance,
        "Growth": varying(judged, cells),
        "Factors to the baselines": varying(factors(times), cells),
        "Crossovers": varying(crossovers, cells),
        "Times": varying(times.drop(columns=["operations", "first_step_ms"]).dropna(axis=1, how="all"), cells),
        "Phases, ms a step": varying(phases(cells), cells),
    }
    files = {"times.csv": times, "scaling.csv": judged, "slopes.csv": slopes, "crossovers.csv": crossovers}
    if len(operations):
        titled["Dearest operations"] = varying(operations.groupby([*PER_GROUP, "dim", "optimizer"]).head(SHOWN), cells)
        files["operations.csv"] = operations
    failed = cells[cells["status"] != "ok"]
    if len(failed):
        titled["Cells that were not measured"] = failed[["optimizer", "dim", "batch", "seed", "status", "reason"]]
    return Section(
        title="Scaling of one step",
        findings=[*scaling_findings.findings(cells, growth, crossovers, times), baselines.BASELINES],
        figures=figures(times, slopes, where),
        tables=titled,
        files=files,
        overview=glance.to_markdown(index=False, tablefmt="simple", stralign="right"),
    )


def overview(times: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a step and, in brackets, times the limit: a row a dim, a column an optimizer."""
    shown = times.assign(cell=[_overview_cell(row) for row in times.to_dict("records")])
    index = [column for column in PER_GROUP if cells[column].nunique() > 1]
    table = shown.pivot(index=[*index, "dim"], columns="optimizer", values="cell").fillna("")
    return table.rename_axis(columns=None).reset_index()


def _overview_cell(row: TableRow) -> str:
    if row["step_ms"] != row["step_ms"]:  # NaN
        return str(row["status"]).replace("_", " ")
    flag = " contended" * row["disturbed"] or " waits for the host" * row["launch_bound"]
    return f"{row['step_ms']:.3g} ({row['ratio']:.3g}x){flag}"


def growth_table(growth: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Verdicts and exponents, and the largest measured dim within each budget."""
    everyone = times.groupby([*PER_GROUP, "optimizer"]).size().index
    table = growth.set_index([*PER_GROUP, "optimizer"]).reindex(everyone)
    table["verdict"] = table["verdict"].fillna("nothing to judge") if len(growth) else "nothing to judge"
    for budget in BUDGETS_MS:
        table[f"dim_in_{budget}_ms"] = step_times.within_budget(times, "step_ms", budget)
    for budget in BUDGETS_MIB:
        table[f"dim_in_{budget}_MiB"] = step_times.within_budget(times, "peak_mib", budget)
    table["largest_dim"] = step_times.within_budget(times, "step_ms", math.inf)
    return table.reset_index()


def factors(times: pd.DataFrame) -> pd.DataFrame:
    """How many times faster than each baseline, by batch and dim: the gain is set by d/B. Of undisturbed times."""
    known = times[~times["disturbed"] & ~times["launch_bound"]].dropna(subset=["ratio"])
    parts = []
    for key, part in known.groupby([*PER_GROUP, "dim"]):
        ratios = part.set_index("optimizer")["ratio"]
        row: TableRow = dict(zip([*PER_GROUP, "dim"], key, strict=True))
        row["d/B"] = row["dim"] / row["batch"]
        for baseline in (name for name in ratios.index if baselines.base(name) in (baselines.HONEST, baselines.NAIVE)):
            for name, ratio in ratios.drop(baseline).items():
                row[f"{name} over {baseline}"] = ratios[baseline] / ratio
        parts.append(row)
    return pd.DataFrame(parts, columns=None if parts else PER_GROUP)


def phases(cells: pd.DataFrame) -> pd.DataFrame:
    """Median over seeds of each phase's milliseconds a step, amortised over its period."""
    key = [*PER_GROUP, "optimizer", "dim"]
    measured = cells[cells["status"] == "ok"].to_dict("records")
    table = pd.DataFrame([{axis: row[axis] for axis in key} | row["phases_ms"] for row in measured])
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


def figures(times: pd.DataFrame, slopes: pd.DataFrame, where: str) -> list[Drawn]:
    """Draw every group; that with most cells is ``scaling``."""
    look = style.styles(times["optimizer"])
    groups = sorted(times.groupby(PER_GROUP), key=lambda item: -len(item[1]))
    drawn = []
    for rank, (key, part) in enumerate(groups):
        own = slopes[(slopes[PER_GROUP] == list(key)).all(axis=1)]
        facts = dict(zip(PER_GROUP, key, strict=True))
        title = "{model}, depth {depth}, batch {batch}, {data}, {dtype}, {device}".format(**facts) + f"\n{where}"
        figure = scaling_figures.scaling_figure(part, own, look, title)
        drawn.append(Drawn(figure, None if rank else "scaling"))
    return drawn
