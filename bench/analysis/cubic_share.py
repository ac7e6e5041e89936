"""Which share of a step is cubic: pure functions of a table of cells (``tables.load``)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from stepscale.bench.analysis.process_variance import CONFIDENCE, Spreads, spreads, usable
from stepscale.bench.analysis.step_times import geometric_mean
from stepscale.bench.records.schema import GROUP

MIN_SIZES, MIN_SPAN = 5, 10.0  # fewer sizes, or less than a decade, bear no verdict
CUBIC_ABOVE, NO_CUBIC_BELOW = 0.25, 0.10  # share of the step at the largest dim
SHARES = np.linspace(0, 1, 401)


def growth(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer): cubic share of the step at the largest dim, verdict, exponent of the FLOPs."""
    spread, rows = spreads(cells, "ratio"), []
    for key, part in usable(cells).groupby([*GROUP, "optimizer"]):
        rows.append(dict(zip([*GROUP, "optimizer"], key, strict=True)) | _row(part, spread))
    return pd.DataFrame(rows, columns=None if rows else [*GROUP, "optimizer"])


def _row(part: pd.DataFrame, spread: Spreads) -> dict[str, object]:
    by_dim = part.groupby("dim")
    dims = by_dim.size().index.to_numpy(dtype=float)
    flops = by_dim["flops"].mean().to_numpy(dtype=float)
    curve = Curve(
        dims,
        ratio=by_dim["ratio"].agg(geometric_mean).to_numpy(dtype=float),
        limit_s=by_dim["limit_ms"].agg(geometric_mean).to_numpy(dtype=float) * 1e-3,
        limit_flops=by_dim["limit_flops"].mean().to_numpy(dtype=float),
        sd=np.array([spread.at(dim).sd for dim in dims]) / np.sqrt(by_dim.size().to_numpy(dtype=float)),
    )
    share, low, high = cubic_share(curve, spread.run.dof)
    counted = len(dims) > 1 and flops.all()  # of a step in another library nothing is
    exponent = math.log(flops[-1] / flops[-2]) / math.log(dims[-1] / dims[-2]) if counted else math.nan
    return {
        "sizes": len(dims),
        "dim_min": int(dims[0]),
        "dim_max": int(dims[-1]),
        "cubic_share": share,
        "cubic_low": low,
        "cubic_high": high,
        "verdict": verdict(dims, low, high) if spread.run.dof else "too few seeds",
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
    sd: np.ndarray  # of the ratio's log


def cubic_share(curve: Curve, dof: int) -> tuple[float, float, float]:
    """Share of a d³ term in the step at the largest dim, with its 95 % interval; NaN with too few sizes.

    A non-negative fit with relative weights of step time = c0 + c1 d + (c2 d² + c3 d³) g(d), where g(d) is the limit's
    seconds a FLOP at that dim: matrix work is slowed and sped up by caches and clocks as the limit is, the overheads of
    launches and of vectors are not. In units of the limit, with its FLOPs as d², that is c0/ℓ + c1 d/ℓ + c2 + c3 d.

    The interval is the profile of that fit: all shares for which the best fit with the share held fixed is not worse
    than t² allows, by the processes' spread and its ``dof``. Where an F test rejects that the spread explains the
    residuals, no machine being that simple, they alone say how wide it is.
    """
    if len(curve.dims) < MIN_SIZES:
        return math.nan, math.nan, math.nan
    x = curve.dims / curve.dims[-1]
    launches, work = curve.limit_s[-1] / curve.limit_s, curve.limit_flops[-1] / curve.limit_flops
    terms_at = np.stack([launches, x * launches, x**2 * work, x**3 * work], axis=1)  # each 1 at the largest dim
    sd = curve.sd if dof else np.ones(len(x))
    weighted, target = terms_at / (curve.ratio * sd)[:, None], 1 / sd
    terms, best = optimize.nnls(weighted, target)
    allowed = best**2 + _allowance(float(best) ** 2, max(1, len(x) - int((terms > 0).sum())), dof)
    inside = [share for share in SHARES if _misfit(weighted, target, share) <= allowed]
    found, step = float(terms[3] / terms.sum()), SHARES[1]
    low, high = min([found, *inside]) - step, max([found, *inside]) + step  # the ends lie between the shares tried
    return found, float(max(0.0, low)), float(min(1.0, high))


def _allowance(misfit: float, residual_dof: int, dof: int) -> float:
    """How much worse than the best fit, with a sum of squares of ``misfit``, a fit within the interval may be."""
    lacking = not dof or misfit / residual_dof > stats.f.ppf(CONFIDENCE, residual_dof, dof)
    both = residual_dof if lacking else residual_dof + dof
    inflation = misfit / residual_dof if lacking else max(1.0, (misfit + dof) / both)
    return float(inflation * stats.t.ppf(0.5 + CONFIDENCE / 2, both) ** 2)


def _misfit(weighted: np.ndarray, target: np.ndarray, share: float) -> float:
    """Sum of squares of the best fit in which d³ holds this share at the largest dim."""
    held = weighted[:, :3] * (1 - share) + weighted[:, 3:] * share
    return float(optimize.nnls(held, target)[1]) ** 2
