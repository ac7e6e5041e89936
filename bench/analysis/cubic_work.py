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
from stepscale.bench.analysis.process_variance import SAME_CELL, Spread, Spreads, half_width, moderated, spreads, usable
from stepscale.bench.analysis.step_times import geometric_mean
from stepscale.bench.records.operations import UNKNOWN_ORDER
from stepscale.bench.records.schema import GROUP

CUBIC_ABOVE = 0.25  # share of the step from which it is called cubic
QUARTIC = 4
RESOLVED = 0.01  # a share nearer to 0 or to 1 is not told from them: clocks and tracing err by as much
PRIOR = Spread(0.033, 1)  # of the log odds between processes
BLOCKS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)  # error of a share by its blocks, relative, in spreads of the log odds
OPTIMIZER = [*GROUP, "optimizer"]
NAMES = ("cubic_operations", "uncounted", "inexact")


def shares(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim, order): ``share`` of the step in work that grows as d^order, mean over seeds.

    Order 0 holds what does not grow and what is no operation, order -1 operations of unknown order.
    """
    rows = []
    for key, part in usable(cells).dropna(subset="shares").groupby(SAME_CELL):
        means = pd.DataFrame(part["shares"].to_list()).fillna(0.0).mean()
        rows += [[*key, order, share] for order, share in means.sort_index().items()]
    return pd.DataFrame(rows, columns=[*SAME_CELL, "order", "share"])


def cubic_shares(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim) whose cubic share is known: its mean over processes, 95 % interval and verdict.

    It is exactly 0, by deduction and without a clock, where no operation is cubic in any process. Else the log odds of
    the share are averaged over processes. Their variance is pooled over the run and moderated by dim
    (``process_variance.moderated``), with a prior that counts as data of one degree of freedom (``PRIOR``): one process
    alone then gets ± 0.42, which is 40 to 60 % at a half. That is as wide as four degrees of freedom of the largest
    spread seen (0.15) make it, and soon forgotten where there are repeats, most of which agree far better.

    Work of unknown order may be cubic too: the interval reaches as much higher. Where there is no other, no share is
    known. A share that some process did not tell from 0 or 1 (``RESOLVED``) has an interval that reaches there.
    """
    known = usable(cells).dropna(subset="cubic_share")
    none = (known["cubic_share"] == 0) & known["cubic_operations"].isna()
    known = known.assign(none=none, unknown=[(found or {}).get(UNKNOWN_ORDER, 0.0) for found in known["shares"]])
    known = known[~(none & known["uncounted"].notna())]
    clipped = known["cubic_share"].astype(float).clip(RESOLVED, 1 - RESOLVED)
    table = known.assign(odds=logit(clipped)).groupby(SAME_CELL, as_index=False).agg(
        none=("none", "all"), processes=("odds", "count"), odds=("odds", "mean"), variance=("odds", "var"),
        least=("cubic_share", "min"), most=("cubic_share", "max"), unknown=("unknown", "mean"),
    )  # fmt: skip
    from_0, from_1 = table["least"] >= RESOLVED, table["most"] <= 1 - RESOLVED
    spread, blocks = _spread(table[from_0 & from_1])
    odds = table["odds"].to_numpy(dtype=float)
    half = [half_width([(spread.at(dim), n)]) for dim, n in zip(table["dim"], table["processes"], strict=True)]
    half = np.array(half) * _scale(odds, blocks)
    high = np.where(from_1, np.minimum(1.0, expit(odds + half) + table["unknown"]), 1.0)
    table["cubic_share"] = np.where(table["none"], 0.0, expit(odds))
    table["cubic_low"] = np.where(from_0, expit(odds - half), 0.0)
    table["cubic_high"] = np.where(table["none"], 0.0, high)
    table["verdict"] = [verdict(low, high) for low, high in zip(table["cubic_low"], table["cubic_high"], strict=True)]
    return table[[*SAME_CELL, "processes", "cubic_share", "cubic_low", "cubic_high", "verdict"]]


def _spread(table: pd.DataFrame) -> tuple[Spreads, float]:
    """Spread of the log odds between processes, from their variance by cell, and which of ``BLOCKS`` goes with it.

    Processes differ in the odds, by as much at every share. Blocks of one process differ in the share, by a part e of
    it, which is e / (1 - share) in log odds. How one compares with the other is the likeliest by the residuals: divided
    by their own scale they then vary alike, and are pooled.

    In simulation 93 to 96 % of the intervals of each kind of step hold the truth, over all dims. Of the largest share
    of a run alone it is 89 to 95 %, least where processes differ by as little as 3 %, and blocks by 2 %.
    """
    freedom, dims = table["processes"] - 1, table["dim"]
    squares = table["variance"].fillna(0.0) * freedom
    fits: list[tuple[float, Spreads, float]] = []
    for blocks in BLOCKS:
        scale = _scale(table["odds"].to_numpy(dtype=float), blocks)
        spread = moderated((squares / scale**2).groupby(dims).sum(), freedom.groupby(dims).sum(), PRIOR)
        unlikely = float((freedom * np.log(scale)).sum()) + spread.run.dof * math.log(spread.run.sd)
        fits.append((unlikely, spread, blocks))
    return min(fits, key=lambda fit: fit[0])[1:]


def _scale(odds: np.ndarray, blocks: float) -> np.ndarray:
    """How much more the log odds of a share vary than processes alone make them."""
    return np.hypot(1.0, blocks / expit(-odds))


def growth(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer): verdict and cubic share at the largest dim at which it is known, and their check.

    ``half_dim`` is the dim from which on half of the step is cubic. ``fit_agrees`` tells whether the fit of counted
    FLOPs (``flop_fit``) and the measured share have intervals that meet; it is None where there is no fit.
    """
    measured, spread, rows = cubic_shares(cells), spreads(cells, "ratio"), []
    found = dict(list(measured.groupby(OPTIMIZER)))
    for key, part in usable(cells).groupby(OPTIMIZER):
        own = found.get(key, measured.iloc[:0])
        judged = part[part["dim"].isin(own["dim"])] if len(own) else part
        rows.append(dict(zip(OPTIMIZER, key, strict=True)) | _row(judged, own, spread))
    table = pd.DataFrame(rows, columns=None if rows else OPTIMIZER)
    return table.astype({"fit_agrees": object}) if rows else table


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
        "quartic": _quartic(largest["order_flops"]),
        **{name: ", ".join(_names((part if name == "uncounted" else largest)[name])) for name in NAMES},
        "fit_share": fit_share,
        "fit_low": fit_low,
        "fit_high": fit_high,
        "fit_agrees": None if math.isnan(fit_share + low) else bool(fit_low <= high and low <= fit_high),
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


def _quartic(by_order: pd.Series) -> float:
    """Return the share of counted FLOPs in operations of order 4 and above, the mean over cells that know it."""
    found = [
        sum(flops for order, flops in orders.items() if order >= QUARTIC) / sum(orders.values())
        for orders in by_order.dropna()
        if sum(orders.values())
    ]
    return float(np.mean(found)) if found else 0.0


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
