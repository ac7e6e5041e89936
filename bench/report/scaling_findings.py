"""A run's findings in sentences, the most important first."""

from __future__ import annotations

import math

import pandas as pd

from stepscale.bench.analysis.baselines import HONEST, NAIVE, base
from stepscale.bench.analysis.cubic_work import CUBIC_ABOVE
from stepscale.bench.analysis.process_variance import SAME_CELL, Spreads, spreads
from stepscale.bench.records.schema import GROUP
from stepscale.bench.report.page import TableRow, percent
from stepscale.bench.report.scaling_tables import (
    NOT_COUNTED,
    ONE_DIM,
    UNLOGGED,
    UNTIMED,
    Judged,
    disagrees,
    groups,
    lacking,
    of_group,
)

VERDICTS = ("no cubic work", "partly cubic", "cubic", "undecided", NOT_COUNTED)  # in the order they are told
KINDS = ("crossover", "none", "equal", "undecided")  # of pairs, likewise
GLOSSARY = {
    "limit": "the model's matrix products that no exact step can avoid, run alone in the same loop",
    "cubic share": (
        "the share of a step's measured time that it spends in operations whose work grows as d³ or faster; which they "
        f"are is counted exactly, at two dims. *Cubic* is a step with more than {percent(CUBIC_ABOVE)} of it, "
        "*partly cubic* one with less"
    ),
    "batch": "rows B of a step; a step over B rows costs at least of the order of B d²",
    HONEST: "the honest baseline: autodiff through one log-determinant a layer",
    NAIVE: "the full Jacobian of every sample; a factor over it says little about a method",
}

ORDERS = {0: "constant", 1: "linear", 2: "quadratic", 3: "cubic", 4: "quartic"}
NEAR = 0.1  # an exponent to the order by whose name it is called
TOLD = 0.01  # share of the FLOPs from which quartic work is told


def findings(judged: Judged) -> list[str]:
    """Say how each optimizer grows, who is faster than whom, and what of the run failed or was disturbed."""
    varying = [column for column in GROUP if judged.cells[column].nunique() > 1]
    found: list[str] = []
    for group in groups(judged.cells):
        place = _where(dict(zip(GROUP, group, strict=True)), varying)
        growth = of_group(judged.growth, group).to_dict("records")
        found += _growth(growth, of_group(judged.times, group), place)
        found += _pairs(judged, group, place, notable=True)
        found += _disagreements(growth, place)
    for machine, cells in judged.cells.groupby("machine", sort=False):
        found += [f"On {machine}: {line}" if "machine" in varying else line for line in _caveats(cells)]
    return found


def pairs(judged: Judged) -> pd.DataFrame:
    """Say of every pair who is faster where, one row a pair."""
    varying = [column for column in GROUP if judged.cells[column].nunique() > 1]
    found = [
        sentence
        for group in groups(judged.cells)
        for sentence in _pairs(judged, group, _where(dict(zip(GROUP, group, strict=True)), varying), notable=False)
    ]
    return pd.DataFrame({"pair": [sentence.replace("`", "") for sentence in found]})


def _where(row: TableRow, varying: list[str]) -> str:
    return "".join(f", {column} {row[column]}" for column in varying)


def _growth(rows: list[TableRow], times: pd.DataFrame, place: str) -> list[str]:
    """One line a verdict, and one a reason to have none; the optimizers with most cubic work first."""
    told: dict[tuple[str, str], dict[str, list[TableRow]]] = {}
    for row in sorted(
        rows, key=lambda row: (VERDICTS.index(row["verdict"]), -max(0, row["cubic_share"]), row["optimizer"])
    ):
        same = told.setdefault((row["verdict"], _added(row, times)), {})
        same.setdefault(_details(row), []).append(row)
    return [
        f"**{verdict.capitalize()}**{place}: "
        + "; ".join(_names(some) + f" ({details})" * bool(details) for details, some in same.items())
        + f"{added}."
        for (verdict, added), same in told.items()
    ]


def _added(row: TableRow, times: pd.DataFrame) -> str:
    """Say why there is no verdict, where there is none."""
    if row["verdict"] == "undecided":
        return f", where {percent(CUBIC_ABOVE)} lies within the interval: more blocks or processes would decide it"
    if row["verdict"] != NOT_COUNTED:
        return ""
    missing = lacking(row, times)
    if missing == UNTIMED and row["uncounted"] and not row["cubic_operations"]:
        return f". Of {row['uncounted']} it is not known how the work grows, or how much it is; no other work is cubic"
    return _LACKING[missing]


_LACKING = {
    UNLOGGED: ". Their operations could not be logged: the note `counts` of their records says why",
    ONE_DIM: (
        ". How their work grows is not known, since it was logged at one dim only: the data or the model has no other,"
        " the note `growth` of their records says why, or they are of an older version"
    ),
    UNTIMED: (
        ". Which share of the time is cubic is not known: their operations were not timed one by one, since their work"
        " does not repeat, or as the note `shares` of their records says"
    ),
}


def _details(row: TableRow) -> str:
    """Say what an optimizer's cubic work is, by clock and by count."""
    parts = []
    if row["cubic_share"] > 0:
        share = percent(row["cubic_share"], row["cubic_low"], row["cubic_high"])
        parts.append(f"{share} of a step at dim {row['dim_max']}")
    if not math.isnan(row["half_dim"]):
        parts.append(f"half of it from dim {row['half_dim']:.0f} on")
    if not math.isnan(row["flop_exponent"]):
        parts.append(f"FLOPs grow as d^{row['flop_exponent']:.2f}{_order(row['flop_exponent'])}")
    if row["quartic"] >= TOLD:
        parts.append(f"{percent(row['quartic'])} of them in work that grows as d⁴")
    if row["verdict"] == NOT_COUNTED and row["cubic_operations"]:
        parts.append(f"cubic by count: {row['cubic_operations']}")
    if row["uncounted"]:
        parts.append(f"not counting {row['uncounted']}")
    if row["inexact"]:
        parts.append(f"{row['inexact']} by no whole power of d")
    return ", ".join(parts)


def _order(exponent: float) -> str:
    """Name the order that an exponent is as good as: d^1.99 is quadratic, d^2.7 has no name."""
    near = round(exponent)
    return f", {ORDERS[near]}" if near in ORDERS and abs(exponent - near) <= NEAR else ""


def _names(rows: list[TableRow]) -> str:
    return ", ".join(f"`{row['optimizer']}`" for row in rows)


def _disagreements(rows: list[TableRow], place: str) -> list[str]:
    """Say where the fit of times against dim reads another share than the operations have."""
    return [
        f"The fit of times against dim disagrees about `{row['optimizer']}`{place}: it reads"
        f" {percent(row['fit_share'], row['fit_low'], row['fit_high'])} of a step at dim {row['dim_max']} as cubic;"
        f" cubic operations take {percent(row['cubic_share'], row['cubic_low'], row['cubic_high'])} of it. The fit"
        " takes a change of speed with dim for growth; the verdict is by operations."
        for row in rows
        if disagrees(row)
    ]


def _pairs(judged: Judged, group: tuple[object, ...], place: str, *, notable: bool) -> list[str]:
    """Sentences on pairs, those that say most first; the notable ones are with the honest baseline, if it is there."""
    table = of_group(judged.crossovers, group)
    if notable:
        own = table[(table["faster"].map(base) == HONEST) | (table["slower"].map(base) == HONEST)]
        table = own if len(own) else table
        table = table[(table["kind"] != "undecided") | (table["dims"] > 1)]
    rows = table.to_dict("records")
    rows.sort(key=lambda row: (KINDS.index(row["kind"]), -_largest(row), row["faster"], row["slower"]))
    alike: dict[str, list[str]] = {}  # of pairs of which no more is to be said, one line for all
    for row in rows:
        pair, said = _pair(row, place)
        alike.setdefault(said if row["kind"] in ("equal", "undecided") else pair + said, []).append(pair)
    return [f"{', '.join(some)}{said.removeprefix(some[0])}." for said, some in alike.items()]


def _pair(row: TableRow, place: str) -> tuple[str, str]:
    """Name a pair, and say what there is to say of it."""
    faster, slower = f"`{row['faster']}`", f"`{row['slower']}`"
    dims = dict.fromkeys([row["dim_min"], row["dim_max"]])
    span = f"{'dims' if len(dims) > 1 else 'dim'} {'–'.join(map(str, dims))}{place}"
    if row["kind"] == "crossover":
        return faster, f" overtakes {slower} between dim {row['low']:g} and {row['high']:g}{place}"
    if row["kind"] == "undecided":
        return f"{faster} and {slower}", f": undecided ({span})"
    if row["kind"] == "equal":
        return f"{faster} and {slower}", f": equal within 5 %{somewhere(row, 0)} ({span})"
    factor = factor_range(row["factor_min"], row["factor_max"])
    if row["decided"] == row["dims"]:
        return faster, f" is faster than {slower}{' throughout' * (len(dims) > 1)}, {factor} ({span})"
    return faster, f" is faster than {slower}{somewhere(row, row['equal'], f', {factor}')} ({span})"


def _largest(row: TableRow) -> float:
    """Return by how much one is faster than the other, 0 of a pair of which that is not said."""
    return float(row["factor_max"]) if row["kind"] == "none" else 0.0


def somewhere(row: TableRow, equal: int, factor: str = "") -> str:
    """Say at how many dims a pair is decided, and what it is at the others, at ``equal`` of which it is equal."""
    rest = row["dims"] - row["decided"]
    if not rest:
        return ""
    elsewhere = " or ".join(["equal within 5 %"] * (equal > 0) + ["undecided"] * (rest > equal))
    return f" at {row['decided']} of {row['dims']} dims{factor}, elsewhere {elsewhere}"


def factor_range(low: float, high: float) -> str:
    """Write a range of factors: ``1.02–1.04×``, ``1.2–1.7×``, ``1.3×``, ``9–52×``."""
    digits = 3 if low < 1.1 else 2
    ends = dict.fromkeys(f"{end:.{digits}g}" if end < 100 else f"{end:.0f}" for end in (low, high))
    return f"{'–'.join(ends)}×"


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
            f"{contended} of {len(ok)} cells were measured while other processes used the machine: in no verdict, and"
            " drawn hollow where there is nothing better. On a busy machine threads=1 suffers least."
        )
    if hollow := int(ok["launch_bound"].sum()):
        found.append(f"{hollow} of {len(ok)} cells wait for the host: drawn hollow, and in no verdict.")
    if unknown := int(ok["launch_bound"].isna().sum()):
        found.append(
            f"Of {unknown} of {len(ok)} cells it is not known whether they wait for the host: the profiler saw no"
            " kernel. They are judged as if they did not."
        )
    found += _without_limit(ok)
    if len(endless := ok[ok["repeats"].eq(False)]):
        found.append(
            f"The work of {_listed(endless)} does not repeat after a period, as far as it was watched: it was timed in"
            " blocks that follow each other."
        )
    if len(waiting := _by_wall_clock(ok)):
        found.append(f"Timed by the wall clock, since it waits or uses several cores: the step of {_listed(waiting)}.")
    found += _repeats(cells, ok)
    if len(ok) and ok["dim"].nunique() == 1:
        found.append("All cells are of one dim: sweep dims, as dim=64,128,256,512, to see growth.")
    if not any(base(name) == HONEST for name in cells["optimizer"]):
        found.append(f"The baseline `{HONEST}` is not in this run.")
    return found


def _without_limit(ok: pd.DataFrame) -> list[str]:
    """Say of which cells there is no limit, and why."""
    found, unlimited = list[str](), ok["ratio"].isna()
    if free := int((unlimited & ok["limit_flops"].isna()).sum()):
        found.append(
            f"{free} of {len(ok)} cells have no limit: it is not known which products no exact step of their model can"
            " avoid. Their times are compared as they are."
        )
    if len(faster := ok[unlimited & ok["limit_flops"].notna()]):
        found.append(
            f"In {len(faster)} of {len(ok)} cells the step of {_listed(faster)} takes less time than torch takes for"
            " the products that it contains: it multiplies by other code. They have no limit."
        )
    return found


def _by_wall_clock(ok: pd.DataFrame) -> pd.DataFrame:
    """Return the cells at one thread whose step turned out not to suit CPU time.

    Records of before there was a choice are left out: FLOPs by order, which came with it, tell them apart.
    """
    free = (ok["device"] == "cpu") & (ok["threads"] == 1) & ok["order_flops"].notna()
    return ok[free & (ok["clock"] == "wall")]


def _listed(cells: pd.DataFrame) -> str:
    return ", ".join(f"`{name}`" for name in sorted(cells["optimizer"].unique()))


def _repeats(cells: pd.DataFrame, ok: pd.DataFrame) -> list[str]:
    """Say how far processes differ; where it is not known, why, and what would tell."""
    figure = "ratio" if ok["ratio"].notna().any() else "step_ms"
    spread = spreads(cells, figure)
    if spread.run.dof:
        what = "Step / limit" if figure == "ratio" else "The step's time"
        return [f"{what} varies by {_percent(spread)} (sd) between processes of the same cell."]
    if not len(ok):
        return []
    if (ok.groupby(SAME_CELL).size() == 1).all():
        return ["One process a cell: times have no interval over processes; more seeds, as seed=0,1, give them one."]
    return [
        "Too few cells were undisturbed: times have no interval over processes. Measure again on a quieter machine, or"
        " with threads=1."
    ]
