"""From raw blocks to a cell's figures: pure functions, used by the stopping rule and by whoever reads a record."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from math import comb
from typing import NamedTuple

import numpy as np

from stepscale.bench.records.contended import CONTENDED
from stepscale.bench.records.schema import Blocks

MIN_BLOCKS = 6  # the least for which order statistics give a 95 % interval of the median


class Estimate(NamedTuple):
    """A cell's headline: medians over blocks, each block the mean over its whole periods."""

    step_s: float  # seconds a step, amortised
    limit_s: float
    ratio: float  # step / limit, the median of the pairs
    ratio_low: float  # its 95 % interval over the blocks of this one process
    ratio_high: float
    contended: bool

    @property
    def precision(self) -> float:
        """Half the interval's width as a share of the ratio."""
        return (self.ratio_high - self.ratio_low) / (2 * self.ratio)


def estimate(blocks: Blocks) -> Estimate:
    """Judge the blocks taken while the machine was ours; all of them, and flagged, where those are too few.

    Raises:
        ValueError: no blocks.
    """
    step, limit = np.array(blocks.step_s), np.array(blocks.limit_s)
    if not len(step):
        raise ValueError("no blocks to judge")
    quiet = np.array([(cores or 0.0) <= CONTENDED for cores in blocks.other_cores])
    contended = bool(quiet.sum() < min(MIN_BLOCKS, len(step)))
    if not contended:
        step, limit = step[quiet], limit[quiet]
    low, middle, high = median_interval(step / limit)
    return Estimate(float(np.median(step)), float(np.median(limit)), middle, low, high, contended)


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
