"""A run's timing records -> the report's section on how a step's time grows. Imports no torch."""

from __future__ import annotations

from stepscale.bench.report import scaling_figures, scaling_findings, scaling_orders, scaling_tables, style
from stepscale.bench.report.page import Section, machine_column, varying
from stepscale.bench.report.scaling_tables import PER_GROUP, Judged, facts, groups, of_group, words
from stepscale.bench.report.style import Drawn, Where

SHOWN = 5  # of each step's operations, in the page
ASKED = "How does the time of one optimizer step grow with the input dimension d: is there work in it that grows as d³?"


def section(judged: Judged, where: Where) -> Section:
    """Say what a run's timed cells tell: the answer, findings, figures, tables for people and for machines.

    ``where`` says of a machine's name what else its figures hang on, and when they were taken.
    """
    cells, times = judged.cells, judged.times
    csv, operations = scaling_tables.growth_csv(judged.growth, times), scaling_tables.dearest_operations(cells)
    titled = {
        "Growth": varying(scaling_tables.growth_table(judged.growth), cells),
        "Cubic work at every dim": scaling_tables.cubic_table(judged.cubic, cells),
        "Times as fast as the baselines": varying(scaling_tables.factors_table(judged.factors), cells),
        "Who is faster, pair by pair": scaling_findings.pairs(judged),
        "Milliseconds a step (× the limit)": scaling_tables.overview(times, cells),
        "Largest dim within a budget": varying(scaling_tables.budgets_table(csv, times), cells),
        "Times": varying(scaling_tables.times_table(times), cells),
        "Phases, ms a step": varying(scaling_tables.phases(cells), cells),
    }
    files = {
        "times.csv": times, "scaling.csv": csv, "factors.csv": judged.factors, "shares.csv": judged.shares,
        "cubic.csv": judged.cubic,
        "slopes.csv": judged.slopes, "crossovers.csv": judged.crossovers,
    }  # fmt: skip
    if len(operations):
        titled["Dearest operations"] = varying(operations.groupby([*PER_GROUP, "dim", "optimizer"]).head(SHOWN), cells)
        files["operations.csv"] = operations
    failed = cells[cells["status"] != "ok"]
    if len(failed):
        titled["Cells that were not measured"] = failed[
            [*machine_column(cells), "optimizer", "dim", "batch", "seed", "status", "reason"]
        ]
    return Section(
        title="Scaling of one step",
        asked=ASKED,
        headline=scaling_tables.headlines(judged),
        findings=scaling_findings.findings(judged),
        figures=figures(judged, where),
        glossary=scaling_findings.GLOSSARY,
        tables=titled,
        files=files,
    )


def figures(judged: Judged, where: Where) -> list[Drawn]:
    """Draw every group, its shares and its times; those of the group with most cells are ``orders`` and ``scaling``."""
    look, drawn = style.styles(judged.times["optimizer"]), []
    for rank, group in enumerate(groups(judged.cells)):
        times, growth = of_group(judged.times, group), of_group(judged.growth, group)
        shares, slopes = of_group(judged.shares, group), of_group(judged.slopes, group)
        what = words(group, judged.cells)
        title = f"{what}\n{where(str(facts(group)['machine']))}"
        if len(shares):
            figure = scaling_orders.orders_figure(shares, growth, times, title)
            alt = scaling_orders.alt(shares, growth, what)
            drawn.append(Drawn(figure, alt, None if rank else "orders"))
        figure = scaling_figures.scaling_figure(times, slopes, look, title)
        drawn.append(Drawn(figure, scaling_figures.alt(times, what), None if rank else "scaling"))
    return drawn
