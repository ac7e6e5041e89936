"""A check of the measured share of cubic work: the share by which counted FLOPs explain how a step's time grows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special

from stepscale.bench.analysis.process_variance import CONFIDENCE, Spreads
from stepscale.bench.analysis.step_times import geometric_mean
from stepscale.bench.records.operations import CUBIC

MIN_SIZES = 5  # fewer dims than that leave the terms nothing to be wrong about
SPEEDING_UP = (0.0, 100.0, 200.0, 400.0, 800.0)  # dims at which cubic work runs at half its final rate
SHARES = np.linspace(0, 1, 101)
NO_FIT = (math.nan, math.nan, math.nan)


class Curve(NamedTuple):
    """An optimizer's ratios to the limit, and the work of both, by ascending dim; each ``[n]``."""

    dims: np.ndarray
    ratio: np.ndarray
    limit_s: np.ndarray
    limit_flops: np.ndarray
    flops: np.ndarray  # of the step, of order 2 and below
    cubic_flops: np.ndarray  # of the step, of order 3 and above
    sd: np.ndarray  # of the ratio's log


def fitted(part: pd.DataFrame, spread: Spreads) -> tuple[float, float, float]:
    """Share of cubic FLOPs in one optimizer's step at the largest dim, with its 95 % interval.

    NaN where there is no such fit: no cubic FLOPs, no limit, FLOPs not counted by order, too few dims.

    Args:
        part: usable cells of one optimizer and group.
        spread: of the log ratio between processes.
    """
    known = part.dropna(subset=["ratio", "limit_flops", "order_flops"])
    by_dim = known.groupby("dim")
    dims = by_dim.size().index.to_numpy(dtype=float)
    counted = by_dim["order_flops"].first().to_list()
    total = np.array([sum(flops.values()) for flops in counted])
    cubic = np.array([sum(work for order, work in flops.items() if order >= CUBIC) for flops in counted], dtype=float)
    if len(dims) < MIN_SIZES or not cubic[-1]:
        return NO_FIT
    curve = Curve(
        dims,
        ratio=by_dim["ratio"].agg(geometric_mean).to_numpy(dtype=float),
        limit_s=by_dim["limit_ms"].agg(geometric_mean).to_numpy(dtype=float) * 1e-3,
        limit_flops=by_dim["limit_flops"].mean().to_numpy(dtype=float),
        flops=total - cubic,
        cubic_flops=cubic,
        sd=np.array([spread.at(dim).sd for dim in dims]) / np.sqrt(by_dim.size().to_numpy(dtype=float)),
    )
    return cubic_share(curve, spread.run.dof)


def cubic_share(curve: Curve, dof: int) -> tuple[float, float, float]:
    """Share of the cubic FLOPs in the step at the largest dim, with its 95 % interval.

    A non-negative fit with relative weights of step time = c0 + c1 d + (r2 F2 + r3 F3 (1 + h/d)) / g(d), where F2 and
    F3 are the step's counted FLOPs below and from order 3 on, and g(d) is the rate of the limit at that dim: products
    are slowed and sped up by caches and clocks as the limit is, the overheads of launches and of vectors are not.
    Factorisations speed up with d beyond that; at d = h (``SPEEDING_UP``) they run at half their final rate.

    The interval is the profile of that fit: all shares for which the best fit with the share held fixed is not worse
    than t² allows, by the processes' spread and its ``dof``. Where an F test rejects that the spread explains the
    residuals, no machine being that simple, they alone say how wide it is.
    """
    sd = curve.sd if dof else np.ones(len(curve.dims))
    target = 1 / sd
    fits = [_terms(curve, half) / (curve.ratio * sd)[:, None] for half in SPEEDING_UP]
    best, found = min((_fit(weighted, target) for weighted in fits), key=lambda fit: fit[0])
    residual_dof = max(1, len(curve.dims) - int((found > 0).sum()))
    allowed = best + _allowance(best, residual_dof, dof)
    share, step = float(found[3] / found.sum()), SHARES[1]
    inside = [s for s in SHARES if any(_misfit(weighted, target, s) <= allowed for weighted in fits)]
    low, high = min([share, *inside]) - step, max([share, *inside]) + step  # the ends lie between the shares tried
    return share, float(max(0.0, low)), float(min(1.0, high))


def _terms(curve: Curve, half: float) -> np.ndarray:
    """Terms of step / limit by dim, each 1 at the largest dim: launches, vectors, FLOPs, cubic FLOPs ``[n, 4]``."""
    rising = curve.cubic_flops * (1 + half / curve.dims)
    columns = [1 / curve.limit_s, curve.dims / curve.limit_s, curve.flops / curve.limit_flops]
    columns.append(rising / curve.limit_flops)
    return np.stack([column / (column[-1] or 1.0) for column in columns], axis=1)


def _fit(weighted: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum of squares of the best fit, and what each term takes of the step at the largest dim."""
    terms, misfit = optimize.nnls(weighted, target)
    return float(misfit) ** 2, terms


def _allowance(misfit: float, residual_dof: int, dof: int) -> float:
    """How much worse than the best fit, with a sum of squares of ``misfit``, a fit within the interval may be."""
    lacking = not dof or misfit / residual_dof > special.fdtri(residual_dof, dof, CONFIDENCE)
    both = residual_dof if lacking else residual_dof + dof
    inflation = misfit / residual_dof if lacking else max(1.0, (misfit + dof) / both)
    return float(inflation * special.stdtrit(both, 0.5 + CONFIDENCE / 2) ** 2)


def _misfit(weighted: np.ndarray, target: np.ndarray, share: float) -> float:
    """Sum of squares of the best fit in which the cubic FLOPs hold this share at the largest dim."""
    held = weighted[:, :3] * (1 - share) + weighted[:, 3:] * share
    return _fit(held, target)[0]
