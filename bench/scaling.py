"""How step time grows with the dimension: pure functions of a table of cells (``records.load``).

Times are compared as ratios to the limit measured in the same loop, so that clocks and caches cancel. Seeds are
processes, and intervals speak of processes: logs of figures are averaged over seeds, with one process-to-process
variance pooled over a run's cells.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from stepscale.bench.records import GROUP

GROUPING = list(GROUP)
MIN_SIZES, MIN_SPAN = 5, 10.0  # fewer sizes, or less than a decade, bear no verdict
CUBIC_ABOVE, NO_CUBIC_BELOW = 0.25, 0.10  # share of the step at the largest dim
SPAN = ["dim_min", "dim_max", "dims", "decided"]
SHARES = np.linspace(0, 1, 401)
CONFIDENCE = 0.95


class Pooled(NamedTuple):
    """Standard deviation of a figure's log from process to process, and its degrees of freedom."""

    sd: float
    dof: int

    def half_width(self, *counts: float, comparisons: int = 1) -> float:
        """Half the interval of a sum or difference of means over that many processes each; infinite without repeats.

        Of that many ``comparisons`` (Bonferroni), so that all of them hold together with 95 %.
        """
        if self.dof < 1:
            return math.inf
        t = stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / comparisons, self.dof)
        return float(t * self.sd * math.sqrt(sum(1 / n for n in counts)))


def usable(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells whose figures speak of the method: measured undisturbed, on a device that does not wait for its host."""
    quiet = undisturbed(cells)
    return quiet[~quiet["launch_bound"]]


def undisturbed(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells measured while no other process took the machine from them."""
    measured = cells[cells["status"] == "ok"]
    return measured[~measured["contended"]]


def pooled(cells: pd.DataFrame, column: str) -> Pooled:
    """Pool the variance of log ``column`` over seeds of otherwise equal cells."""
    measured = undisturbed(cells)
    logs = _logs(measured, column).groupby([measured[c] for c in [*GROUPING, "optimizer", "dim"]])
    counts, variances = logs.count(), logs.var()
    dof = int((counts - 1).sum())
    if dof < 1:
        return Pooled(math.nan, 0)
    return Pooled(math.sqrt(float((variances.fillna(0) * (counts - 1)).sum()) / dof), dof)


def _logs(cells: pd.DataFrame, column: str) -> pd.Series[float]:
    return cells[column].map(math.log)


def times(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim): geometric means over seeds with intervals, and what became of each seed."""
    spread = {column: pooled(cells, column) for column in ("step_ms", "ratio")}
    return pd.DataFrame(
        [
            dict(zip([*GROUPING, "optimizer", "dim"], key, strict=True)) | _time_row(part, spread)
            for key, part in cells.groupby([*GROUPING, "optimizer", "dim"])
        ]
    )


def _time_row(part: pd.DataFrame, spread: dict[str, Pooled]) -> dict[str, Any]:
    ok, quiet = part[part["status"] == "ok"], undisturbed(part)
    contended = len(ok) - len(quiet)
    ok = quiet if len(quiet) else ok  # flagged, where there is nothing better
    row: dict[str, Any] = {"seeds": len(part), "ok": len(ok), "status": ", ".join(sorted(set(part["status"])))}
    for column in ("step_ms", "ratio"):
        mean = _geometric_mean(ok[column])
        half = spread[column].half_width(len(ok)) if len(ok) else math.nan
        row |= {column: mean, f"{column}_low": mean * math.exp(-half), f"{column}_high": mean * math.exp(half)}
    for column in ("limit_ms", "cheap_ms", "peak_ms", "first_step_ms", "peak_mib", "energy_j", "flops", "operations"):
        row[column] = _geometric_mean(ok[column])
    row["cosine"] = ok["cosine"].median()
    for column in ("log_det", "period"):
        row[column] = ok[column].iloc[0] if len(ok) else None
    row["composed"] = bool(ok["composed"].any())
    row["contended"] = contended
    row["launch_bound"] = bool(ok["launch_bound"].any())
    row["reason"] = "; ".join(sorted(set(part["reason"].dropna())))
    return row


def _geometric_mean(values: pd.Series) -> float:
    found = values.to_numpy(dtype=float)
    found = found[~np.isnan(found)]
    return float(np.exp(np.log(found).mean())) if len(found) and (found > 0).all() else math.nan


def local_slopes(cells: pd.DataFrame, column: str = "step_ms") -> pd.DataFrame:
    """Δ log time / Δ log dim between neighbouring dims, with its interval; ``dim`` is the pair's geometric middle."""
    spread, rows = pooled(cells, column), []
    for key, part in usable(cells).groupby([*GROUPING, "optimizer"]):
        logs = _logs(part, column).groupby(part["dim"])
        means, counts = logs.mean(), logs.count()
        for a, b in itertools.pairwise(means.index):
            run = math.log(b / a)
            half = spread.half_width(counts[a], counts[b]) / run
            slope = (means[b] - means[a]) / run
            rows.append([*key, a, b, math.sqrt(a * b), slope, slope - half, slope + half])
    return pd.DataFrame(rows, columns=[*GROUPING, "optimizer", "from", "to", "dim", "slope", "low", "high"])


def growth(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer): cubic share of the step at the largest dim, verdict, exponent of the FLOPs."""
    spread = pooled(cells, "ratio")
    rows = []
    for key, part in usable(cells).groupby([*GROUPING, "optimizer"]):
        rows.append(dict(zip([*GROUPING, "optimizer"], key, strict=True)) | _growth_row(part, spread))
    return pd.DataFrame(rows, columns=None if rows else [*GROUPING, "optimizer"])


def _growth_row(part: pd.DataFrame, spread: Pooled) -> dict[str, Any]:
    by_dim = part.groupby("dim")
    dims = by_dim.size().index.to_numpy(dtype=float)
    flops = by_dim["flops"].mean().to_numpy(dtype=float)
    curve = Curve(
        dims,
        ratio=by_dim["ratio"].agg(_geometric_mean).to_numpy(dtype=float),
        limit_s=by_dim["limit_ms"].agg(_geometric_mean).to_numpy(dtype=float) * 1e-3,
        limit_flops=by_dim["limit_flops"].mean().to_numpy(dtype=float),
        processes=by_dim.size().to_numpy(dtype=float),
    )
    share, low, high = cubic_share(curve, spread)
    counted = len(dims) > 1 and flops.all()  # of a step in another library nothing is
    exponent = math.log(flops[-1] / flops[-2]) / math.log(dims[-1] / dims[-2]) if counted else math.nan
    return {
        "sizes": len(dims),
        "dim_min": int(dims[0]),
        "dim_max": int(dims[-1]),
        "cubic_share": share,
        "cubic_low": low,
        "cubic_high": high,
        "verdict": verdict(dims, low, high) if spread.dof else "too few seeds",
        "flop_exponent": exponent,
        "uncounted": ", ".join(sorted(set(part["uncounted"].dropna()))),
        "ratio_at_max": float(curve.ratio[-1]),
    }


def verdict(dims: np.ndarray, low: float, high: float) -> str:
    """Judge by size, not by significance: a machine is no polynomial, and a tiny cubic term is always found."""
    if len(dims) < MIN_SIZES or dims[-1] / dims[0] < MIN_SPAN:
        return "too few sizes"
    if low > CUBIC_ABOVE:
        return "cubic"
    return "no cubic term" if high < NO_CUBIC_BELOW else "undecided"


class Curve(NamedTuple):
    """An optimizer's ratios to the limit, and the limit, by ascending dim; each ``[n]``."""

    dims: np.ndarray
    ratio: np.ndarray
    limit_s: np.ndarray
    limit_flops: np.ndarray
    processes: np.ndarray  # how many are behind each ratio


def cubic_share(curve: Curve, spread: Pooled) -> tuple[float, float, float]:
    """Share of a d³ term in the step at the largest dim, with its 95 % interval; NaN with too few sizes.

    A non-negative fit with relative weights of step time = c0 + c1 d + (c2 d² + c3 d³) g(d), where g(d) is the limit's
    seconds a FLOP at that dim: matrix work is slowed and sped up by caches and clocks as the limit is, the overheads of
    launches and of vectors are not. In units of the limit, with its FLOPs as d², that is c0/ℓ + c1 d/ℓ + c2 + c3 d.

    The interval is the profile of that fit: all shares for which the best fit with the share held fixed is not worse
    than t² allows. Residuals larger than the processes' spread explains, no machine being that simple, widen it by
    their ratio.
    """
    if len(curve.dims) < MIN_SIZES:
        return math.nan, math.nan, math.nan
    x = curve.dims / curve.dims[-1]
    launches, work = curve.limit_s[-1] / curve.limit_s, curve.limit_flops[-1] / curve.limit_flops
    terms_at = np.stack([launches, x * launches, x**2 * work, x**3 * work], axis=1)  # each 1 at the largest dim
    sd = spread.sd / np.sqrt(curve.processes) if spread.dof else np.ones(len(x))
    weighted, target = terms_at / (curve.ratio * sd)[:, None], 1 / sd
    terms, best = optimize.nnls(weighted, target)
    residual_dof = max(1, len(x) - int((terms > 0).sum()))
    inflation, dof = float(best) ** 2 / residual_dof, residual_dof
    if spread.dof and inflation <= 1:
        inflation, dof = 1.0, spread.dof
    allowed = best**2 + inflation * stats.t.ppf(0.5 + CONFIDENCE / 2, dof) ** 2
    inside = [share for share in SHARES if _misfit(weighted, target, share) <= allowed]
    found = float(terms[3] / terms.sum())
    return found, float(min([found, *inside])), float(max([found, *inside]))


def _misfit(weighted: np.ndarray, target: np.ndarray, share: float) -> float:
    """Sum of squares of the best fit in which d³ holds this share at the largest dim."""
    held = weighted[:, :3] * (1 - share) + weighted[:, 3:] * share
    return float(optimize.nnls(held, target)[1]) ** 2


def crossovers(cells: pd.DataFrame) -> pd.DataFrame:
    """Where one optimizer overtakes another, for each pair over the dims both have; nothing is extrapolated.

    ``kind`` is ``crossover`` (``faster`` is so above, ``slower`` below; ``at`` interpolated, undecided from ``low`` to
    ``high``), ``none`` (``faster`` at every decided dim) or ``undecided`` (no dim decided). Of ``dims`` both have,
    ``decided`` are those where the interval of the difference, at 95 % over all of a pair's dims, leaves out zero.
    """
    spread, rows = pooled(cells, "ratio"), []
    for key, part in usable(cells).groupby(GROUPING):
        logs = _logs(part, "ratio").groupby([part["optimizer"], part["dim"]])
        means, counts = logs.mean().unstack(), logs.count().unstack()
        for one, other in itertools.combinations(means.index, 2):
            gap = (means.loc[one] - means.loc[other]).dropna()
            tries = len(gap)
            half = np.array(
                [spread.half_width(counts.loc[one, d], counts.loc[other, d], comparisons=tries) for d in gap.index]
            )
            for found in _pair_rows(one, other, gap, half) if len(gap) else []:
                rows.append(dict(zip(GROUPING, key, strict=True)) | found)
    return pd.DataFrame(rows, columns=[*GROUPING, "faster", "slower", "kind", "at", "low", "high", *SPAN])


def _pair_rows(one: str, other: str, gap: pd.Series, half: np.ndarray) -> list[dict[str, Any]]:
    """Judge a pair from ``gap`` = log time of ``one`` less ``other``'s by dim, and the half-width of each."""
    dims, gaps = gap.index.to_numpy(dtype=float), gap.to_numpy(dtype=float)
    decided = [k for k in range(len(dims)) if abs(gaps[k]) > half[k]]
    span = {"dim_min": int(dims[0]), "dim_max": int(dims[-1]), "dims": len(dims), "decided": len(decided)}
    nothing = {"at": math.nan, "low": math.nan, "high": math.nan}
    if not decided:
        return [{"faster": one, "slower": other, "kind": "undecided", **nothing, **span}]
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


def within_budget(cells: pd.DataFrame, column: str, budget: float) -> pd.Series:
    """Largest measured dim whose ``column`` (step_ms, peak_mib) is at most ``budget``, by group and optimizer."""
    measured = cells[cells["status"] == "ok"]
    inside = measured[measured[column] <= budget]
    return inside.groupby([*GROUPING, "optimizer"])["dim"].max()
