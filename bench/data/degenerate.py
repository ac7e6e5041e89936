"""Rows on which a likelihood has no upper bound, or whose columns differ too much in scale: told before training."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepscale.bench.data.dataset import moments

SAMPLE = 2_048  # rows that tell whether values repeat, and at least as many that tell whether columns depend
WIDEST = 2_048  # dim up to which columns are compared with each other
FEW = 1 / 4  # of the sampled rows: a column with fewer different values is no continuous one
UNEXPLAINED = 1e-9  # of a column's variance: less is what rounding leaves
APART = 1e3  # between the deviations of two columns
FAR = 1e4  # times the range of a column's middle half: an outlier, which not even Cauchy's density has often


class Faults(NamedTuple):
    """What is wrong with rows, a sentence each; None where nothing is."""

    unbounded: str | None  # why a density of them can be as high as one likes: they lie on points, or in a plane
    unscaled: str | None  # why one scale for all columns does not do


def faults(rows: Tensor) -> Faults:
    """O(n d) and, up to dim ``WIDEST``, O(d² max(SAMPLE, 2 d)): what is wrong with continuous rows ``[n, dim]``."""
    _, deviation = moments(rows.numpy())
    varying = np.flatnonzero(deviation > 0)
    constant = np.flatnonzero(deviation == 0)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    sample = rows[drawn[:SAMPLE]].double()[:, varying].T.contiguous().sort().values  # [varying, SAMPLE]
    repeating = [int(varying[k]) for k in _repeating(sample)]
    more = rows[drawn[: max(SAMPLE, 2 * rows.shape[1])]].double()[:, varying]
    dependent = _dependent(more, varying) if rows.shape[1] <= WIDEST else []
    unbounded = [_columns(constant, "is constant", "are constant")] if len(constant) else []
    unbounded += [_columns(repeating, "repeats its values", "repeat their values")] if repeating else []
    unbounded += dependent[:1]
    unscaled = _far(rows, sample, varying) or _apart(deviation, varying)
    return Faults("; ".join(unbounded) or None, unscaled)


def _columns(columns: list[int] | np.ndarray, one: str, many: str) -> str:
    if len(columns) == 1:
        return f"column {columns[0]} {one}"
    return f"{len(columns)} columns {many}, the first is column {columns[0]}"


def _repeating(sample: Tensor) -> list[int]:
    """Name the sorted ``[columns, n]`` that hold few values, or one value for half of the rows."""
    n = sample.shape[1]
    different = 1 + (sample.diff(dim=1) > 0).sum(dim=1)
    half = (sample[:, n // 2 :] == sample[:, : n - n // 2]).any(dim=1)
    return (((different < FEW * n) | half) & (n > 8)).nonzero().flatten().tolist()


def _dependent(rows: Tensor, names: np.ndarray) -> list[str]:
    """Say which columns of ``[n, columns]`` those before them determine, by Cholesky's pivots of their correlations."""
    n, dim = rows.shape
    if n < dim + 2 or not dim:
        return []
    deviation = rows.std(dim=0, correction=0)
    if not (deviation > 0).all():  # of a column that varies in other rows alone
        return []
    scaled = (rows - rows.mean(dim=0)) / deviation
    correlation = scaled.T @ scaled / n
    factor, failed = torch.linalg.cholesky_ex(correlation + 1e-3 * UNEXPLAINED * torch.eye(dim, dtype=torch.float64))
    pivots = factor.diagonal().square()
    found = []
    for k in (pivots < UNEXPLAINED).nonzero().flatten().tolist() if not failed else ():
        alike = (1 - correlation[k, :k].abs() < UNEXPLAINED).nonzero().flatten().tolist()
        other = f"column {names[alike[0]]} but for shift and scale" if alike else "a sum of multiples of others"
        found.append(f"column {names[k]} is {other}")
    return found


def _far(rows: Tensor, sample: Tensor, names: np.ndarray) -> str | None:
    """Name the column whose largest or smallest value lies farthest from its median, if that lies ``FAR``."""
    n = sample.shape[1]
    middle, median = sample[:, (3 * n) // 4] - sample[:, n // 4], sample[:, n // 2]
    largest = torch.maximum(rows.amax(dim=0)[names] - median, median - rows.amin(dim=0)[names])
    away = torch.where(middle > 0, largest / middle, 0)
    if not len(names) or away.max() < FAR:
        return None
    return (
        f"column {names[int(away.argmax())]} has an outlier, {float(away.max()):.1g} times as far from its median as"
        " its middle half is wide; remove that row, or clip it"
    )


def _apart(deviation: np.ndarray, names: np.ndarray) -> str | None:
    """Name the two columns whose deviations differ most, if they differ by ``APART``."""
    if not len(names):
        return None
    low, high = names[deviation[names].argmin()], names[deviation[names].argmax()]
    factor = deviation[high] / deviation[low]
    if factor < APART:
        return None
    return f"column {high} has {factor:.1g} times the deviation of column {low}; standardise each column"
