"""Where one optimizer overtakes another: pure functions of a table of cells (``tables.load``)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from stepscale.bench.analysis.process_variance import half_width, spreads, usable
from stepscale.bench.records.schema import GROUP

SPAN = ["dim_min", "dim_max", "dims", "decided", "decided_min", "decided_max"]


def crossovers(cells: pd.DataFrame) -> pd.DataFrame:
    """Where one optimizer overtakes another, for each pair over the dims both have; nothing is extrapolated.

    ``kind`` is ``crossover`` (``faster`` is so above, ``slower`` below; ``at`` interpolated, undecided from ``low`` to
    ``high``), ``none`` (``faster`` at every decided dim) or ``undecided`` (no dim decided). Of ``dims`` both have,
    ``decided`` are those where the interval of the difference, at 95 % over all of a pair's dims, leaves out zero.
    """
    spread, rows = spreads(cells, "ratio"), []
    for key, part in usable(cells).groupby(list(GROUP)):
        logs = part["ratio"].map(math.log).groupby([part["optimizer"], part["dim"]])
        means, counts = logs.mean().unstack(), logs.count().unstack()
        for one, other in itertools.combinations(means.index, 2):
            gap = (means.loc[one] - means.loc[other]).dropna()
            half = np.array(
                [half_width([(spread.at(d), counts.loc[o, d]) for o in (one, other)], len(gap)) for d in gap.index]
            )
            for found in _pair_rows(one, other, gap, half) if len(gap) else []:
                rows.append(dict(zip(GROUP, key, strict=True)) | found)
    return pd.DataFrame(rows, columns=[*GROUP, "faster", "slower", "kind", "at", "low", "high", *SPAN])


def _pair_rows(one: str, other: str, gap: pd.Series, half: np.ndarray) -> list[dict[str, object]]:
    """Judge a pair from ``gap`` = log time of ``one`` less ``other``'s by dim, and the half-width of each."""
    dims, gaps = gap.index.to_numpy(dtype=float), gap.to_numpy(dtype=float)
    decided = [k for k in range(len(dims)) if abs(gaps[k]) > half[k]]
    span = {"dim_min": int(dims[0]), "dim_max": int(dims[-1]), "dims": len(dims), "decided": len(decided)}
    nothing = {"at": math.nan, "low": math.nan, "high": math.nan}
    if not decided:
        return [{"faster": one, "slower": other, "kind": "undecided", **nothing, **span}]
    span |= {"decided_min": int(dims[decided[0]]), "decided_max": int(dims[decided[-1]])}
    rows = []
    for a, b in itertools.pairwise(decided):
        if gaps[a] * gaps[b] < 0:
            names = {"faster": one, "slower": other} if gaps[b] < 0 else {"faster": other, "slower": one}
            at = _zero(dims[a : b + 1], gaps[a : b + 1])
            rows.append({**names, "kind": "crossover", "at": at, "low": dims[a], "high": dims[b], **span})
    if rows:
        return rows
    names = {"faster": one, "slower": other} if gaps[decided[0]] < 0 else {"faster": other, "slower": one}
    return [{**names, "kind": "none", **nothing, **span}]


def _zero(dims: np.ndarray, gaps: np.ndarray) -> float:
    """Return the dim at which the gap first changes its sign, interpolated in log dim."""
    k = int(np.flatnonzero(np.sign(gaps[:-1]) != np.sign(gaps[1:]))[0])
    logs = np.log(dims[k : k + 2])
    return float(np.exp(logs[0] + (logs[1] - logs[0]) * gaps[k] / (gaps[k] - gaps[k + 1])))
