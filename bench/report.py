"""A run's folder -> CSV, Markdown, PNG, SVG and one self-contained HTML page. Imports no torch."""

from __future__ import annotations

import argparse
import html
import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from stepscale.bench import plots, records, scaling, words

PER_GROUP = list(records.GROUP)
BUDGETS_MS, BUDGETS_MIB = (1, 10, 100), (1024,)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-size: 12.5px; margin: .5rem 0 1.5rem; }}
th, td {{ padding: .15rem .55rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
th {{ background: #f4f4f4; }} .wide {{ overflow-x: auto; }} svg {{ max-width: 100%; height: auto; }}
code {{ background: #f1f1f1; padding: 0 .2em; }} .where {{ color: #666; }}
</style></head><body>
<h1>{title}</h1><p class="where">{where}</p>
<ul>
{findings}
</ul>
{figures}
{tables}
</body></html>
"""


def write(folder: Path) -> str:
    """Write everything a run's records tell into its folder; return the summary to print.

    Raises:
        FileNotFoundError: the folder holds no record.
    """
    cells = records.load(folder)
    times, slopes = scaling.times(cells), scaling.local_slopes(cells)
    growth, crossovers = scaling.growth(cells), scaling.crossovers(cells)
    found = words.findings(cells, growth, crossovers, times)
    where = provenance(folder)
    tables = {
        "Growth": growth_table(cells, growth),
        "Factors to the baselines": _varying(factors(times), cells),
        "Crossovers": _varying(crossovers, cells),
        "Times": _varying(times.drop(columns=["operations", "first_step_ms"]), cells),
        "Phases, ms a step": _varying(phases(cells), cells),
    }
    failed = cells[cells["status"] != "ok"]
    if len(failed):
        tables["Cells that were not measured"] = failed[["optimizer", "dim", "batch", "seed", "status", "reason"]]
    times.to_csv(folder / "times.csv", index=False)
    growth_table(cells, growth, every_axis=True).to_csv(folder / "scaling.csv", index=False)
    slopes.to_csv(folder / "slopes.csv", index=False)
    crossovers.to_csv(folder / "crossovers.csv", index=False)
    (folder / "summary.md").write_text(markdown(found, where, tables))
    figures = _figures(folder, times, slopes, where)
    (folder / "report.html").write_text(page(found, where, figures, tables))
    lines = [overview(times, cells), "", *(f"- {line}" for line in found), "", f"report in {folder / 'report.html'}"]
    return "\n".join(lines)


def overview(times: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Milliseconds a step and, in brackets, times the limit: a row a dim, a column an optimizer."""
    shown = times.assign(cell=[_overview_cell(row) for row in times.to_dict("records")])
    index = [column for column in PER_GROUP if cells[column].nunique() > 1]
    table = shown.pivot(index=[*index, "dim"], columns="optimizer", values="cell").fillna("")
    return table.reset_index().to_markdown(index=False, tablefmt="simple", stralign="right")


def _overview_cell(row: dict[Any, Any]) -> str:
    known = row["step_ms"] == row["step_ms"]  # no NaN
    return f"{row['step_ms']:.3g} ({row['ratio']:.3g}x)" if known else row["status"].replace("_", " ")


def provenance(folder: Path) -> str:
    """Say which machine, versions and date a run's figures are of."""
    there, _ = records.read_all(folder)
    measured = [record for record in there if "cpu" in record["environment"]]
    if not measured:
        return "no cell was measured"
    machine = measured[-1]["environment"]
    parts = [machine["gpu"]] if "gpu" in machine else []
    parts += [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"]
    parts += [f"torch {machine['torch']}", f"Python {machine['python']}"]
    parts += [f"stepscale {machine['stepscale']} ({machine['commit'] or machine['code']})"]
    dates = sorted(record["finished"][:10] for record in measured)
    return ", ".join([*parts, dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"])


def growth_table(cells: pd.DataFrame, growth: pd.DataFrame, *, every_axis: bool = False) -> pd.DataFrame:
    """Verdicts and exponents, and the largest measured dim within each budget."""
    table = growth.set_index([*PER_GROUP, "optimizer"])
    for budget in BUDGETS_MS:
        table[f"dim_in_{budget}_ms"] = scaling.within_budget(cells, "step_ms", budget)
    for budget in BUDGETS_MIB:
        table[f"dim_in_{budget}_MiB"] = scaling.within_budget(cells, "peak_mib", budget)
    table = table.reset_index()
    return table if every_axis else _varying(table, cells)


def factors(times: pd.DataFrame) -> pd.DataFrame:
    """How many times faster than each baseline, by batch and dim: the gain is set by d/B."""
    known = times.dropna(subset=["ratio"])
    parts = []
    for key, part in known.groupby([*PER_GROUP, "dim"]):
        ratios = part.set_index("optimizer")["ratio"]
        row: dict[str, Any] = dict(zip([*PER_GROUP, "dim"], key, strict=True))
        row["d/B"] = row["dim"] / row["batch"]
        for baseline in (name for name in ratios.index if words.base(name) in (words.HONEST, words.NAIVE)):
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


def markdown(found: list[str], where: str, tables: dict[str, pd.DataFrame]) -> str:
    """Lay out the summary: findings first."""
    parts = ["# Scaling of one step", where, "\n".join(f"- {line}" for line in found), words.BASELINES]
    for title, table in tables.items():
        text = table.to_markdown(index=False, floatfmt=".4g", missingval="") if len(table) else "nothing to show"
        parts.append(f"## {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def page(found: list[str], where: str, figures: list[str], tables: dict[str, pd.DataFrame]) -> str:
    """Lay out the HTML page; it needs no other file."""
    shown = "\n".join(
        f'<h2>{html.escape(title)}</h2><div class="wide">{_html(table)}</div>' for title, table in tables.items()
    )
    return PAGE.format(
        title="Scaling of one step",
        where=html.escape(where),
        findings="\n".join(f"<li>{_inline(line)}</li>" for line in [*found, words.BASELINES]),
        figures="\n".join(figures),
        tables=shown,
    )


def _figures(folder: Path, times: pd.DataFrame, slopes: pd.DataFrame, where: str) -> list[str]:
    """Write ``scaling.png`` and ``.svg`` of the group with most cells; return the SVG of every group."""
    look = plots.styles(times["optimizer"])
    groups = sorted(times.groupby(PER_GROUP), key=lambda item: -len(item[1]))
    drawn = []
    for rank, (key, part) in enumerate(groups):
        own = slopes[(slopes[PER_GROUP] == list(key)).all(axis=1)]
        facts = dict(zip(PER_GROUP, key, strict=True))
        title = "{model}, depth {depth}, batch {batch}, {data}, {dtype}, {device}".format(**facts) + f"\n{where}"
        figure = plots.scaling_figure(part, own, look, title)
        buffer = io.StringIO()
        plots.save(figure, buffer, "svg")
        drawn.append(buffer.getvalue()[buffer.getvalue().index("<svg") :])
        if rank == 0:
            plots.save(figure, folder / "scaling.png", "png")
            (folder / "scaling.svg").write_text(buffer.getvalue())
    return drawn


def _varying(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Leave out the axes that do not vary within the run."""
    return table.drop(columns=[column for column in PER_GROUP if cells[column].nunique() == 1])


def _html(table: pd.DataFrame) -> str:
    if not len(table):
        return "<p>nothing to show</p>"
    return table.to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="", border=0)


def _inline(line: str) -> str:
    """Escape, with `code` and **bold** of Markdown."""
    text = html.escape(line)
    for mark, tag in (("**", "strong"), ("`", "code")):
        pieces = text.split(mark)
        text = "".join(f"<{tag}>{piece}</{tag}>" if k % 2 else piece for k, piece in enumerate(pieces))
    return text


def main() -> None:
    """``python -m stepscale.bench.report FOLDER``: draw a run's report anew from its records."""
    parser = argparse.ArgumentParser(
        prog="stepscale.bench.report", description="Write a run's report from its records."
    )
    parser.add_argument("folder", type=Path)
    try:
        print(write(parser.parse_args().folder))
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
