"""From raw blocks to a cell's figures: pure functions, used by the stopping rule and by whoever reads a record."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from math import comb, isnan, nan
from typing import NamedTuple

import numpy as np

from stepscale.bench.records.contended import CONTENDED
from stepscale.bench.records.schema import Blocks

MIN_BLOCKS = 6  # the least for which order statistics give a 95 % interval of the median
LEAST_RATIO = 0.97  # no step is faster than its limit: below it, beyond what clocks and caches do, the limit is wrong


class Estimate(NamedTuple):
    """A cell's headline: medians over blocks, each block the mean over its whole periods."""

    step_s: float  # seconds a step, amortised
    limit_s: float
    ratio: float  # step / limit, the median of the pairs
    ratio_low: float  # its 95 % interval over the blocks of this one process
    ratio_high: float
    contended: bool
    precision: float  # half the interval's width as a share of the ratio; without a ratio, the step's


def estimate(blocks: Blocks) -> Estimate:
    """Judge the blocks taken while the machine was ours; all of them, and flagged, where those are too few.

    The limit and the ratio are NaN where no limit was timed, and where it is none: see ``limit_fault``.

    Raises:
        ValueError: no blocks.
    """
    step, limit, contended = _judged(blocks)
    limit_s, ratio = float(np.median(limit)) if len(limit) else nan, _ratio(step, limit)
    if not ratio[2] >= LEAST_RATIO:
        limit_s, ratio = nan, (nan, nan, nan)
    low, middle, high = median_interval(step) if isnan(limit_s) else ratio
    precision = (high - low) / (2 * middle)
    return Estimate(float(np.median(step)), limit_s, ratio[1], ratio[0], ratio[2], contended, precision)


def limit_fault(blocks: Blocks) -> str | None:
    """Say why there is no ratio, if there is none: no limit is known, or the step is clearly faster.

    A step contains its limit's products: a ratio clearly below 1 would be a wrong figure.
    """
    step, limit, _ = _judged(blocks)
    if not len(limit):
        return "the model declares no products, and none of its loss's are known"
    if not _ratio(step, limit)[2] < LEAST_RATIO:
        return None
    step_ms, limit_ms = 1e3 * np.median(step), 1e3 * np.median(limit)
    return f"takes longer than the step that contains it: {limit_ms:.4g} ms, the step {step_ms:.4g} ms"


def _judged(blocks: Blocks) -> tuple[np.ndarray, np.ndarray, bool]:
    """Seconds of step and limit in the blocks that count, of the limit none if it is not known; and ``contended``."""
    step, limit = np.array(blocks.step_s), np.array(blocks.limit_s)
    if not len(step):
        raise ValueError("no blocks to judge")
    quiet = np.array([(cores or 0.0) <= CONTENDED for cores in blocks.other_cores])
    contended = bool(quiet.sum() < min(MIN_BLOCKS, len(step)))
    if not contended:
        step, limit = step[quiet], limit[quiet] if len(limit) else limit
    return step, limit, contended


def _ratio(step: np.ndarray, limit: np.ndarray) -> tuple[float, float, float]:
    """Lower end, median and upper end of step / limit; NaN without a limit."""
    return median_interval(step / limit) if len(limit) else (nan, nan, nan)


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Lower end, median and upper end of the distribution-free 95 % interval of the median (order statistics).

    With fewer than ``MIN_BLOCKS`` values no such interval exists, and the ends are the minimum and the maximum.
    """
    ordered, skipped = np.sort(values), _skipped(len(values))
    return float(ordered[skipped]), float(np.median(ordered)), float(ordered[len(values) - 1 - skipped])


@cache
def _skipped(n: int) -> int:
    """How many of n ordered values lie outside the interval at each end."""
    # scipy.stats.binom.ppf(0.025, n, 0.5), without the second that scipy.stats takes to import
    quantile = sum(40 * below < 2**n for below in accumulate(comb(n, k) for k in range(n + 1)))
    return max(0, quantile - 1)
