"""Which share of a step is cubic work, and what that makes of it: pure functions of a table of cells (``tables.load``).

Work is cubic if it grows as d³ or faster; which operations are is counted exactly, and what they take is measured
inside the step. So every dim has an answer of its own, and nothing is extrapolated.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from stepscale.bench.analysis.flop_fit import fitted
from stepscale.bench.analysis.process_variance import SAME_CELL, Spread, Spreads, half_width, spreads, usable
from stepscale.bench.analysis.step_times import geometric_mean
from stepscale.bench.records.schema import GROUP

CUBIC_ABOVE = 0.25  # share of the step from which it is called cubic
RESOLVED = 0.01  # a share nearer to 0 or to 1 is not told from them: clocks and tracing err by as much
PRIOR = Spread(0.033, 1)  # of the log odds between processes
OPTIMIZER = [*GROUP, "optimizer"]
NAMES = ("cubic_operations", "uncounted", "inexact")


def shares(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim, order): ``share`` of the step in work that grows as d^order, the mean over seeds.

    Order 0 holds what does not grow and what is no operation, order -1 operations of unknown order.
    """
    rows = []
    for key, part in usable(cells).dropna(subset="shares").groupby(SAME_CELL):
        means = pd.DataFrame(part["shares"].to_list()).fillna(0.0).mean()
        rows += [[*key, int(order), share] for order, share in means.sort_index().items()]
    return pd.DataFrame(rows, columns=[*SAME_CELL, "order", "share"])


def cubic_shares(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim) whose cubic share is known: its mean over processes and 95 % interval.

    It is exactly 0, by deduction and without a clock, where no operation is cubic in any process. Else the log odds of
    the share are averaged over processes. Their variance is pooled over the run and moderated by dim
    (``process_variance.spreads``), with a prior that counts as data of one degree of freedom (``PRIOR``): one process
    alone then gets ± 0.42, which is 40 to 60 % at a half. That is as wide as the largest spread seen between processes
    (0.15, with four degrees of freedom), and soon forgotten where there are repeats, most of which agree far better.

    What is uncounted may be cubic too: the interval then reaches to 1. Where it is all there may be, nothing is known.
    A share that was not told from 0 or 1 (``RESOLVED``) in some process has an interval that reaches there.
    """
    known = usable(cells).dropna(subset="cubic_share")
    known = known.assign(
        partly_counted=known["uncounted"].notna(), none=(known["cubic_share"] == 0) & known["cubic_operations"].isna()
    )
    known = known[~(known["partly_counted"] & known["none"])]
    none = known.groupby(SAME_CELL)["none"].transform("all").astype(bool)
    clipped = known["cubic_share"].astype(float).clip(RESOLVED, 1 - RESOLVED)
    known = known.assign(odds=logit(clipped).mask(none))
    spread = spreads(known[clipped == known["cubic_share"]], "odds", float, PRIOR)
    table = known.groupby(SAME_CELL, as_index=False).agg(
        none=("none", "all"), processes=("odds", "count"), odds=("odds", "mean"), least=("cubic_share", "min"),
        most=("cubic_share", "max"), partly_counted=("partly_counted", "any"),
    )  # fmt: skip
    half = np.array([half_width([(spread.at(d), n)]) for d, n in zip(table["dim"], table["processes"], strict=True)])
    odds = table["odds"].to_numpy(dtype=float)
    open_above = (table["most"] > 1 - RESOLVED) | table["partly_counted"]
    table["cubic_share"] = np.where(table["none"], 0.0, expit(odds))
    table["cubic_low"] = np.where(table["none"] | (table["least"] < RESOLVED), 0.0, expit(odds - half))
    table["cubic_high"] = np.where(table["none"], 0.0, np.where(open_above, 1.0, expit(odds + half)))
    return table[[*SAME_CELL, "processes", "cubic_share", "cubic_low", "cubic_high"]]


def growth(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer): verdict and cubic share at the largest dim at which it is known, and their check.

    ``half_dim`` is the dim from which on half of the step is cubic. ``fit_agrees`` tells whether the interval of the fit
    (``flop_fit``) and that of the measured share have something in common; None where there is no fit.
    """
    measured, spread, rows = cubic_shares(cells), spreads(cells, "ratio"), []
    found = dict(list(measured.groupby(OPTIMIZER)))
    for key, part in usable(cells).groupby(OPTIMIZER):
        own = found.get(key, measured.iloc[:0])
        judged = part[part["dim"].isin(own["dim"])] if len(own) else part
        rows.append(dict(zip(OPTIMIZER, key, strict=True)) | _row(judged, own, spread))
    return pd.DataFrame(rows, columns=None if rows else OPTIMIZER)


def _row(part: pd.DataFrame, own: pd.DataFrame, spread: Spreads) -> dict[str, object]:
    """Judge an optimizer from its cells and its cubic shares by dim."""
    largest = part[part["dim"] == part["dim"].max()]
    share, low, high = own[["cubic_share", "cubic_low", "cubic_high"]].iloc[-1] if len(own) else (math.nan,) * 3
    fit_share, fit_low, fit_high = fitted(part, spread)
    return {
        "sizes": part["dim"].nunique(),
        "dim_min": int(part["dim"].min()),
        "dim_max": int(part["dim"].max()),
        "verdict": verdict(low, high),
        "cubic_share": share,
        "cubic_low": low,
        "cubic_high": high,
        "half_dim": half_dim(own["dim"].to_numpy(dtype=float), own["cubic_share"].to_numpy(dtype=float)),
        "flop_exponent": float(largest["flop_exponent"].astype(float).mean()),
        **{name: ", ".join(_names((part if name == "uncounted" else largest)[name])) for name in NAMES},
        "fit_share": fit_share,
        "fit_low": fit_low,
        "fit_high": fit_high,
        "fit_agrees": None if math.isnan(fit_share) or math.isnan(low) else fit_low <= high and low <= fit_high,
        "ratio_at_max": geometric_mean(largest["ratio"]),
    }


def verdict(low: float, high: float) -> str:
    """Say in a word what a step is whose cubic share has this interval: by size, a tiny share being always found."""
    if math.isnan(high):
        return "not counted"
    if high == 0:
        return "no cubic work"
    if low > CUBIC_ABOVE:
        return "cubic"
    return "partly cubic" if high < CUBIC_ABOVE else "undecided"


def half_dim(dims: np.ndarray, share: np.ndarray) -> float:
    """Dim from which on half of the step is cubic, by the log odds' line in log dim; NaN if it was not passed."""
    odds = logit(share.clip(RESOLVED, 1 - RESOLVED))
    if not len(dims) or odds[-1] < 0:
        return math.nan
    for a, b in reversed(list(itertools.pairwise(range(len(dims))))):
        if odds[a] < 0 <= odds[b]:
            x, y = np.log(dims[[a, b]]), odds[[a, b]]
            return float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))
    return math.nan


def _names(values: pd.Series) -> list[str]:
    """Return the names in cells' lists of names, each once."""
    return sorted({name.strip() for listed in values.dropna() for name in listed.split(",") if name.strip()})
