"""Where one optimizer overtakes another: pure functions of a table of cells (``tables.load``)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from stepscale.bench.analysis.factors import verdict
from stepscale.bench.analysis.pairs import gap_half_widths, pairs
from stepscale.bench.records.schema import GROUP

SPAN = ["dim_min", "dim_max", "dims", "decided", "equal", "decided_min", "decided_max", "factor_min", "factor_max"]


def crossovers(cells: pd.DataFrame) -> pd.DataFrame:
    """Where one optimizer overtakes another, for each pair over the dims both have; nothing is extrapolated.

    ``kind`` is ``crossover`` (``faster`` is so above, ``slower`` below; ``at`` interpolated, undecided from ``low`` to
    ``high``), ``none`` (``faster`` wherever one is), ``equal`` (within 5 % at every dim that is decided) or
    ``undecided`` (no dim decided). Of ``dims`` both have, ``decided`` are those where one is faster; of kind ``equal``
    those where they are equal. ``equal`` counts the latter in any case. ``factor_min`` to ``factor_max`` is by how many
    times they differ at the decided dims: the slower's time / the faster's, as ``pairs`` have it, which decides too.
    Intervals of the difference are ``pairs``', at 95 % over all of a pair's dims and of the run's looks.
    """
    rows, looks = [], float(cells["looks"].max())
    for key, part in pairs(cells).groupby([*GROUP, "one", "other"]):
        half = gap_half_widths(part, len(part) * looks)
        for found in _pair_rows(str(key[-2]), str(key[-1]), part.set_index("dim")["gap"], half):
            rows.append(dict(zip(GROUP, key, strict=False)) | found)
    return pd.DataFrame(rows, columns=[*GROUP, "faster", "slower", "kind", "at", "low", "high", *SPAN])


def _pair_rows(one: str, other: str, gap: pd.Series, half: np.ndarray) -> list[dict[str, object]]:
    """Judge a pair from ``gap`` = log time of ``one`` less ``other``'s by dim, and the half-width of each."""
    dims, gaps = gap.index.to_numpy(dtype=float), gap.to_numpy(dtype=float)
    words = [verdict(*of) for of in zip(gaps, half, strict=True)]
    equal = [k for k, word in enumerate(words) if word == "equal"]
    told = [k for k, word in enumerate(words) if word in ("faster", "slower")]
    decided = told or equal
    span: dict[str, object] = {"dim_min": int(dims[0]), "dim_max": int(dims[-1]), "dims": len(dims)}
    span |= {"decided": len(decided), "equal": len(equal)}
    nothing = {"at": math.nan, "low": math.nan, "high": math.nan}
    if not decided:
        return [{"faster": one, "slower": other, "kind": "undecided", **nothing, **span}]
    span |= {"decided_min": int(dims[decided[0]]), "decided_max": int(dims[decided[-1]])}
    factors = np.exp(abs(gaps[decided]))
    span |= {"factor_min": float(factors.min()), "factor_max": float(factors.max())}
    rows = []
    for a, b in itertools.pairwise(told):
        if gaps[a] * gaps[b] < 0:
            names = {"faster": one, "slower": other} if gaps[b] < 0 else {"faster": other, "slower": one}
            at = _zero(dims[a : b + 1], gaps[a : b + 1])
            rows.append({**names, "kind": "crossover", "at": at, "low": dims[a], "high": dims[b], **span})
    if rows:
        return rows
    names = {"faster": one, "slower": other} if gaps[decided[0]] < 0 else {"faster": other, "slower": one}
    return [{**names, "kind": "none" if told else "equal", **nothing, **span}]


def _zero(dims: np.ndarray, gaps: np.ndarray) -> float:
    """Return the dim at which the gap first changes its sign, interpolated in log dim."""
    k = int(np.flatnonzero(np.sign(gaps[:-1]) != np.sign(gaps[1:]))[0])
    logs = np.log(dims[k : k + 2])
    return float(np.exp(logs[0] + (logs[1] - logs[0]) * gaps[k] / (gaps[k] - gaps[k + 1])))
