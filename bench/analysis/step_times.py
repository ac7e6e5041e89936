"""How step time grows with the dimension: pure functions of a table of cells (``tables.load``).

Times are compared as ratios to the limit measured in the same loop, so that clocks and caches cancel. Seeds are
processes, and intervals speak of processes: logs of figures are averaged over seeds, with the process-to-process
variance of their dim. What is cubic is told by ``cubic_work``, who is faster by ``factors`` and ``crossovers``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from stepscale.bench.analysis.process_variance import (
    SAME_CELL,
    Spreads,
    half_width,
    spreads,
    spreads_of_waiting,
    undisturbed,
    usable,
)
from stepscale.bench.records.schema import GROUP

PLAIN = ("limit_ms", "cheap_ms", "peak_ms", "first_step_ms", "peak_mib", "energy_j", "flops", "operations")


def times(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim): geometric means over seeds with intervals, and what became of each seed.

    ``disturbed`` are those of which no seed was measured undisturbed: flagged, where there is nothing better.
    """
    of = (spreads, spreads_of_waiting)
    spread = {column: tuple(found(cells, column) for found in of) for column in ("step_ms", "ratio")}
    rows = [dict(zip(SAME_CELL, key, strict=True)) | _row(part, spread) for key, part in cells.groupby(SAME_CELL)]
    return pd.DataFrame(rows)


def _row(part: pd.DataFrame, spread: dict[str, tuple[Spreads, ...]]) -> dict[str, object]:
    measured, quiet = part[part["status"] == "ok"], undisturbed(part)
    contended = len(measured) - len(quiet)
    ok = quiet if len(quiet) else measured
    row: dict[str, object] = {"seeds": len(part), "ok": len(ok), "status": ", ".join(sorted(set(part["status"])))}
    row["launch_bound"] = waits = bool(ok["launch_bound"].any())
    for column in ("step_ms", "ratio"):
        mean = geometric_mean(ok[column])
        half = half_width([(spread[column][waits].at(part["dim"].iloc[0]), ok[column].count())])
        row |= {column: mean, f"{column}_low": mean * math.exp(-half), f"{column}_high": mean * math.exp(half)}
    row |= {column: geometric_mean(ok[column]) for column in PLAIN}
    row["cosine"] = ok["cosine"].dropna().median()  # pandas 2 warns where nothing is known
    for column in ("log_det", "period"):
        row[column] = ok[column].iloc[0] if len(ok) else None
    row["composed"] = bool(ok["composed"].any())
    row["contended"], row["disturbed"] = contended, bool(len(measured)) and not len(quiet)
    row["reason"] = "; ".join(sorted(set(part["reason"].dropna())))
    return row


def geometric_mean(values: pd.Series) -> float:
    """Return the geometric mean of what is known; NaN where nothing is, or something is not positive."""
    found = values.to_numpy(dtype=float)
    found = found[~np.isnan(found)]
    return float(np.exp(np.log(found).mean())) if len(found) and (found > 0).all() else math.nan


def local_slopes(cells: pd.DataFrame, column: str = "step_ms") -> pd.DataFrame:
    """Δ log time / Δ log dim between neighbouring dims, with its interval; ``dim`` is the pair's geometric middle."""
    spread, rows = spreads(cells, column), []
    for key, part in usable(cells).groupby([*GROUP, "optimizer"]):
        logs = part[column].map(math.log).groupby(part["dim"])
        means, counts = logs.mean(), logs.count()
        for a, b in itertools.pairwise(means.index):
            run = math.log(b / a)
            half = half_width([(spread.at(dim), counts[dim]) for dim in (a, b)]) / run
            slope = (means[b] - means[a]) / run
            rows.append([*key, a, b, math.sqrt(a * b), slope, slope - half, slope + half])
    return pd.DataFrame(rows, columns=[*GROUP, "optimizer", "from", "to", "dim", "slope", "low", "high"])


def within_budget(table: pd.DataFrame, column: str, budget: float) -> pd.Series:
    """Largest measured dim whose ``column`` (step_ms, peak_mib) of ``times`` is at most ``budget``."""
    inside = table[table[column] <= budget]
    return inside.groupby([*GROUP, "optimizer"])["dim"].max()
