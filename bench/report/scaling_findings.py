"""A run's findings in sentences: what a reader wants before any table."""

from __future__ import annotations

import pandas as pd

from stepscale.bench.analysis.baselines import HONEST, base
from stepscale.bench.analysis.process_variance import SAME_CELL, Spreads, spreads
from stepscale.bench.records.schema import GROUP
from stepscale.bench.report.page import TableRow


def findings(cells: pd.DataFrame, growth: pd.DataFrame, crossovers: pd.DataFrame, times: pd.DataFrame) -> list[str]:
    """Say who overtakes whom, what is cubic, and what of the run failed or was disturbed."""
    varying = [column for column in GROUP if cells[column].nunique() > 1]
    found = [_overtaking(row, times, varying) for row in _largest_first(_notable(crossovers), cells)]
    rows = _largest_first(growth, cells)
    found += [_growth(row, varying) for row in rows if not row["verdict"].startswith("too few")]
    found += _unjudged([row for row in rows if row["verdict"].startswith("too few") and row["sizes"] > 1], varying)
    if any(row["sizes"] < 2 for row in rows):  # one line for all of them, not one each
        found.append("What was measured at one dim only says nothing of growth: sweep dims, as dim=64,128,256,512.")
    return found + _caveats(cells)


def _largest_first(table: pd.DataFrame, cells: pd.DataFrame) -> list[TableRow]:
    """Rows of a table, those of the group with most cells first."""
    size = cells.groupby(list(GROUP)).size().rename("cells")
    joined = table.merge(size, left_on=list(GROUP), right_index=True)
    return joined.sort_values("cells", ascending=False, kind="stable").to_dict("records")


def _notable(crossovers: pd.DataFrame) -> pd.DataFrame:
    """Pairs with the honest baseline, but for what one dim leaves undecided; all pairs where it is not there."""
    own = crossovers[(crossovers["faster"].map(base) == HONEST) | (crossovers["slower"].map(base) == HONEST)]
    own = own if len(own) else crossovers
    return own[(own["kind"] != "undecided") | (own["dims"] > 1)]


def _where(row: TableRow, varying: list[str]) -> str:
    return "".join(f", {column} {row[column]}" for column in varying)


def _overtaking(row: TableRow, times: pd.DataFrame, varying: list[str]) -> str:
    faster, slower, where = f"`{row['faster']}`", f"`{row['slower']}`", _where(row, varying)
    if row["kind"] == "crossover":
        return f"{faster} overtakes {slower} at dim {row['low']:g}–{row['high']:g}{where}."
    dims = dict.fromkeys([row["dim_min"], row["dim_max"]])
    span = f"dim {'–'.join(map(str, dims))}{where}"
    if row["kind"] == "undecided":
        return f"{faster} and {slower}: undecided at {span}."
    factors = []
    for dim in dict.fromkeys([row["decided_min"], row["decided_max"]]):
        factor = _ratio(times, row, row["slower"], dim) / _ratio(times, row, row["faster"], dim)
        factors.append(f"{factor:.3g}× at {dim:g}")
    extent = "at" if row["decided"] == row["dims"] else f"at {row['decided']} of the {row['dims']} dims in"
    extent += " all of" if extent == "at" and len(dims) > 1 else ""
    return f"{faster} is faster than {slower} {extent} {span}: {', '.join(factors)}."


def _ratio(times: pd.DataFrame, row: TableRow, optimizer: str, dim: int) -> float:
    same = (times["optimizer"] == optimizer) & (times["dim"] == dim)
    for column in GROUP:
        same &= times[column] == row[column]
    return float(times.loc[same, "ratio"].iloc[0])


def _growth(row: TableRow, varying: list[str]) -> str:
    where = _where(row, varying)
    name, span = f"`{row['optimizer']}`{where}", f"dims {row['dim_min']}–{row['dim_max']}"
    known = row["flop_exponent"] == row["flop_exponent"]  # no NaN: another library's FLOPs are not counted
    flops = f"FLOPs grow as d^{row['flop_exponent']:.2f} at the end" if known else "FLOPs are not counted"
    if row["uncounted"]:
        flops += f", not counting {row['uncounted']}"
    share = f"{100 * row['cubic_low']:.0f}–{100 * row['cubic_high']:.0f} % of a step at dim {row['dim_max']} is cubic"
    return f"{name}: **{row['verdict']}**; {share} ({row['sizes']} {span}); {flops}."


def _unjudged(rows: list[TableRow], varying: list[str]) -> list[str]:
    """One line for all optimizers that lack the same thing over the same dims."""
    found: dict[str, list[str]] = {}
    for row in rows:
        span = f"({row['sizes']} sizes, dims {row['dim_min']}–{row['dim_max']})"
        found.setdefault(f"{_where(row, varying)}: {row['verdict']} for a verdict {span}.", []).append(row["optimizer"])
    return [", ".join(f"`{name}`" for name in names) + rest for rest, names in found.items()]


def _percent(spread: Spreads) -> str:
    """Say how the spread at the smallest dim differs from that at the largest."""
    ends = dict.fromkeys([min(spread.by_dim), max(spread.by_dim)])
    return " to ".join(f"{100 * spread.at(dim).sd:.1f} % at dim {dim}" for dim in ends)


def _caveats(cells: pd.DataFrame) -> list[str]:
    found = []
    ok = cells[cells["status"] == "ok"]
    for status, part in cells[cells["status"] != "ok"].groupby("status"):
        found.append(f"{len(part)} of {len(cells)} cells: {status}.")
    if contended := int(ok["contended"].sum()):
        found.append(
            f"{contended} of {len(ok)} cells were measured while other processes used the machine: in no fit, and drawn"
            " hollow where there is nothing better. On a busy machine threads=1 suffers least."
        )
    if hollow := int(ok["launch_bound"].sum()):
        found.append(
            f"{hollow} of {len(ok)} cells wait for the host, or no kernel was seen: drawn hollow, and in no fit."
        )
    spread = spreads(cells, "ratio")
    if spread.run.dof:
        found.append(f"Step / limit varies by {_percent(spread)} (sd) between processes of the same cell.")
    elif len(ok):
        alone = (ok.groupby(SAME_CELL).size() == 1).all()
        why = "One process a cell" if alone else "Too few cells were undisturbed"
        found.append(f"{why}: no interval over processes can be given; run more seeds, as seed=0,1.")
    if not any(base(name) == HONEST for name in cells["optimizer"]):
        found.append(f"The baseline `{HONEST}` is not in this run: no factors to it.")
    return found
