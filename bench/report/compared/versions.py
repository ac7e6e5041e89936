"""Two runs of the same cells on one machine, with other code, torch or driver -> did the upgrade make steps slower?"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from stepscale.bench.analysis import versions
from stepscale.bench.analysis.process_variance import CONFIDENCE
from stepscale.bench.analysis.step_times import geometric_mean
from stepscale.bench.records import tables
from stepscale.bench.records.schema import GROUP, Record, Task
from stepscale.bench.report.page import Section, Shown, TableRow, measured, number

ASKED = "Did other code, torch or another driver make the same step slower on the same machine?"
NAMED = 5  # cells that a sentence names, of each verdict
TOLD_APART = ("slower", "faster")
Run = tuple[str, Collection[Record]]  # its folder's name, and its records
Cells = dict[tuple[object, ...], list[Record]]


def section(runs: Sequence[Run]) -> Section | None:
    """Compare every two runs, an earlier-named one with a later-named one; None where they share no cell to compare."""
    headline, every = dict[str, pd.DataFrame](), dict[str, pd.DataFrame]()
    findings, found = list[str](), list[pd.DataFrame]()
    for (before, earlier), (after, later) in itertools.combinations(runs, 2):
        for machine, (one, other) in _shared(earlier, later).items():
            table = versions.compared(*(tables.cells_of(records, Task.TIME) for records in (one, other)))
            if len(table):
                title = f"{after} against {before}: {_changed(one, other)}, {machine}"
                every[title] = _shown(table)
                headline[title] = every[title][every[title]["verdict"].isin(TOLD_APART)]
                findings.append(f"{title}: {_told(table)}")
                found.append(table.assign(before=before, after=after))
    if not found:
        return None
    files = {"versions.csv": pd.concat(found, ignore_index=True)}
    decided = {title: table for title, table in headline.items() if len(table)}
    return Section("Before and after", ASKED, decided, findings, [], {}, every, files)


def _shared(earlier: Collection[Record], later: Collection[Record]) -> dict[str, tuple[list[Record], list[Record]]]:
    """Return by machine the records of the cells that both have, not by the same versions."""
    before, after = _by_cell(earlier), _by_cell(later)
    found: dict[str, tuple[list[Record], list[Record]]] = {}
    for cell in (cell for cell in before if cell in after):
        if _changed(before[cell], after[cell]):
            own = found.setdefault(str(cell[-1]), ([], []))
            own[0].extend(before[cell])
            own[1].extend(after[cell])
    return found


def _by_cell(records: Collection[Record]) -> Cells:
    """Return the timed records that count, by all of their axes but the seed; the last is the machine."""
    found: Cells = {}
    for record in tables.newest([record for record in records if record.task is Task.TIME]):
        axes = tables.axes_of(record)
        found.setdefault(tuple(axes[axis] for axis in axes if axis != "seed"), []).append(record)
    return found


def _versions(records: Iterable[Record]) -> list[dict[str | None, str]]:
    """Return which code, torch and driver records were measured by, each with its name; that of code is its commit."""
    return [
        {record.environment.code: f"code {record.environment.commit or record.environment.code}" for record in records},
        {record.environment.torch: f"torch {record.environment.torch}" for record in records},
        {record.machine.driver: f"driver {record.machine.driver}" for record in records},
    ]


def _changed(before: Sequence[Record], after: Sequence[Record]) -> str:
    """Say what another version has measured: ``torch 2.13.0 after torch 2.12.0``; nothing where it is the same."""
    both = [pair for pair in zip(_versions(before), _versions(after), strict=True) if pair[0].keys() != pair[1].keys()]
    return ", ".join(f"{' and '.join(new.values())} after {' and '.join(old.values())}" for old, new in both)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """One row a cell for people: the slowest upgrade first."""
    rows = [
        {axis: row[axis] for axis in (*GROUP, "optimizer", "dim") if axis == "dim" or table[axis].nunique() > 1}
        | {
            "ms before": Shown(number(row["before_ms"]), row["before_ms"]),
            "ms after": Shown(number(row["after_ms"]), row["after_ms"]),
            "times as long": Shown(measured(row["times"], row["low"], row["high"]), row["times"]),
            "the limit": Shown(number(row["limit_times"]), row["limit_times"]),
            "verdict": row["verdict"],
        }
        for row in table.sort_values("times", ascending=False).to_dict("records")
    ]
    return pd.DataFrame(rows)


def _told(table: pd.DataFrame) -> str:
    """Say what an upgrade has made of the steps: how many became slower and which, and what of the limit."""
    mean, limit = geometric_mean(table["times"]), geometric_mean(table["limit_times"])
    parts = [
        f"a step takes {number(mean)}× as long, the limit {number(limit)}× (geometric means of {len(table)} cells)"
    ]
    for verdict in TOLD_APART:
        own = table[table["verdict"] == verdict].sort_values("times", ascending=verdict == "faster")
        some = own.to_dict("records")
        if some:
            more = ", …" * (len(some) > NAMED)
            parts.append(f"{verdict} are {len(some)}: {', '.join(map(_cell, some[:NAMED]))}{more}")
    rest = [f"{count} {word}" for word in ("equal", "undecided") if (count := int((table["verdict"] == word).sum()))]
    chance = f"; {number(round((1 - CONFIDENCE) * len(table)))} may be told apart by chance" * bool(len(parts) > 1)
    return "; ".join([*parts, " and ".join(rest)]).removesuffix("; ") + f"{chance}."


def _cell(row: TableRow) -> str:
    return f"`{row['optimizer']}` at dim {row['dim']} {measured(row['times'], row['low'], row['high'], '×')}"
