"""How many times faster an optimizer is than a baseline: pure functions of a table of cells (``tables.load``)."""

from __future__ import annotations

import math
from collections.abc import Collection

import pandas as pd

from stepscale.bench.analysis.baselines import HONEST, NAIVE, base
from stepscale.bench.analysis.pairs import EQUAL, gap_half_widths, pairs
from stepscale.bench.analysis.process_variance import CONFIDENCE, usable
from stepscale.bench.records.schema import GROUP

COLUMNS = [*GROUP, "dim", "optimizer", "baseline", "factor", "low", "high", "seeds", "rounds", "verdict"]


def factors(cells: pd.DataFrame, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """One row a (group, dim, optimizer, baseline): ``factor`` = time of the baseline / time of the optimizer.

    Its interval, ``low`` to ``high``, holds with that ``confidence``, over processes (``pairs``). The verdict is
    ``equal`` where the interval lies within 5 % of 1, else ``faster`` or ``slower`` where it leaves out 1, else
    ``undecided``. Baselines are those of ``baselines``; in a group without one, the slowest at the largest dim.

    A run that asks several times whether enough seeds are there, and stops when a difference shows, finds one too
    often: the error is spent over all its ``looks`` (Bonferroni).
    """
    rows, baselines = [], _baselines(cells)
    spent = 1 - (1 - confidence) / float(cells["looks"].max(skipna=True))
    compared = pairs(cells)
    compared["half"] = gap_half_widths(compared, confidence=spent)
    for pair in compared.to_dict("records"):
        key = [pair[axis] for axis in (*GROUP, "dim")]
        for name, baseline, sign in ((pair["one"], pair["other"], -1), (pair["other"], pair["one"], 1)):
            if baseline in baselines[tuple(key[:-1])]:
                log = sign * pair["gap"]
                ends = [math.exp(log + by) for by in (0, -pair["half"], pair["half"])]
                rows.append([*key, name, baseline, *ends, pair["seeds"], pair["rounds"], verdict(log, pair["half"])])
    return pd.DataFrame(rows, columns=COLUMNS)


def undecided(cells: pd.DataFrame) -> set[tuple[object, ...]]:
    """Cells, as (*group, dim, optimizer), of which a further seed might decide something.

    They are the optimizers whose factor over the honest baseline, or over any other where it was not measured at that
    dim, is undecided; and that baseline.
    """
    found: set[tuple[object, ...]] = set()
    each = [factors(own) for _, own in cells.groupby("machine")]  # by its own processes' spread
    for key, part in (group for table in each for group in table.groupby([*GROUP, "dim"])):
        honest = part[part["baseline"].map(base) == HONEST]
        of = honest if len(honest) else part
        open_ = of[of["verdict"] == "undecided"]
        found |= {(*key, name) for name in [*open_["optimizer"], *open_["baseline"]]}
    return found


def verdict(log: float, half: float) -> str:
    """Judge a log factor that is known to ± ``half``."""
    if abs(log) + half < math.log(EQUAL):
        return "equal"
    if abs(log) <= half:
        return "undecided"
    return "faster" if log > 0 else "slower"


def _baselines(cells: pd.DataFrame) -> dict[tuple[object, ...], Collection[str]]:
    """Return the baselines of each group."""
    found: dict[tuple[object, ...], Collection[str]] = {}
    for key, part in usable(cells).groupby(list(GROUP)):
        named = [name for name in part["optimizer"].unique() if base(name) in (HONEST, NAIVE)]
        largest = part[part["dim"] == part["dim"].max()]
        found[key] = named or [largest.groupby("optimizer")["step_ms"].median().idxmax()]
    return found
