"""Rows in three splits, standardised; and what the loaders share.

Every loader is called as ``load(dim=..., rows=..., seed=...)`` and returns train, validation and held-out rows: three
splits that share nothing, centred by dimension (``centre=False`` leaves the mean in) and scaled as a whole, all by
the train rows' figures. ``rows`` counts the train rows; None for as many as the loader thinks right.

Likelihoods are of these rows. A user's file is the exception: its ``Rescaling`` brings them to the file's own units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepscale.models import Batch

MOST_ROWS, MOST_VALUES = 50_000, 2**25  # of a train split whose size is left to the loader
EVALUATION_ROWS = 2_000  # most validation rows, and most held-out rows, of what is drawn at random
CHUNK = 2**20  # values that are brought to float64 at once


class Rescaling(NamedTuple):
    """How rows came from those in whose units likelihoods are quoted: less ``shift``, over ``scale``."""

    shift: np.ndarray  # float64, [dim]
    scale: float

    @property
    def nats(self) -> float:
        """What it adds to the log-density of a row, to be that of the row in the units before: log|det|."""
        return -len(self.shift) * math.log(self.scale)


class Dataset(NamedTuple):
    """Three splits, a remark for the record, and what is known of the rows.

    A split is float32, ``[rows, dim]``, or such inputs and their targets, or int64 tokens, alone or with
    those that follow.
    """

    train: Batch
    validation: Batch
    held_out: Batch
    note: str
    shape: tuple[int, int] | None = None  # height and width, where a row is an image drawn row by row
    mixing: Tensor | None = None  # float64 M, [dim, dim], where x = s Mᵀ for independent sources s, less the mean
    bits_offset: float = 0.0  # bits a dimension from the rows' own unit to the one they are quoted in: 8-bit pixels
    rescaling: Rescaling | None = None  # where likelihoods are quoted in the units of a user's file

    @property
    def splits(self) -> tuple[Batch, Batch, Batch]:
        return self.train, self.validation, self.held_out


def standardised(
    parts: Sequence[np.ndarray],
    note: str,
    centre: bool = True,
    *,
    mixing: np.ndarray | None = None,
    quoted: bool = False,
) -> Dataset:
    """Subtract the train rows' mean by dimension, unless not to ``centre``, and divide by their one standard deviation.

    All of it in float64, whatever the type of ``parts``; the result is float32.

    Args:
        parts: train, validation and held-out rows, ``[rows, dim]``.
        note: of the result.
        centre: whether to subtract; the deviation is about the mean either way.
        mixing: M with x = s Mᵀ, in the units of ``parts``; the result's is in its own.
        quoted: whether likelihoods are quoted in the units of ``parts``, and not in the result's own.

    Raises:
        ValueError: there is one train row, or the train rows are all the same.
    """
    mean, deviation = moments(parts[0])
    scale = float(np.hypot.reduce(deviation / math.sqrt(len(deviation))))  # squares could overflow, or vanish
    if len(parts[0]) < 2:
        raise ValueError(f"{note} has one train row, which has no standard deviation: add rows")
    if not 0 < scale < math.inf:
        what = "all the same: nothing to learn from" if scale == 0 else f"{scale} apart: rescale them"
        raise ValueError(f"the train rows of {note} are {what}")
    shift = mean if centre else np.zeros_like(mean)
    train, validation, held_out = (_rescaled(part, shift, scale) for part in parts)
    matrix = None if mixing is None else torch.from_numpy(mixing / scale)
    rescaling = Rescaling(shift, scale) if quoted else None
    return Dataset(train, validation, held_out, note, mixing=matrix, rescaling=rescaling)


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """O(n d): mean and standard deviation of each column of ``[n, dim]``, in float64 whatever its type, ``[dim]`` each.

    Each column is divided by its largest value, so that no square overflows or vanishes; the deviation of a constant
    column is exactly 0. What the mean lacks by rounding is found with the deviation and added.
    """
    largest = np.max([np.abs(chunk).max(axis=0) for chunk in in_float64(rows)], axis=0)
    unit = np.where(largest > 0, largest, 1.0)
    about = sum((chunk / unit).sum(axis=0) for chunk in in_float64(rows)) / len(rows)
    first, second = np.zeros_like(unit), np.zeros_like(unit)
    for chunk in in_float64(rows):
        rest = chunk / unit - about
        first += rest.sum(axis=0)
        second += np.square(rest).sum(axis=0)
    lacking = first / len(rows)
    variance = np.maximum(0, second / len(rows) - lacking**2)
    return unit * (about + lacking), unit * np.sqrt(variance)


def in_float64(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows in float64, some at a time: a copy of them all may not fit."""
    size = max(1, CHUNK // max(1, rows.shape[1]))
    for first in range(0, len(rows), size):
        yield rows[first : first + size].astype(np.float64)


def _rescaled(rows: np.ndarray, shift: np.ndarray, scale: float) -> torch.Tensor:
    """Subtract and divide, in float64, and return float32."""
    found, first = np.empty(rows.shape, np.float32), 0
    with np.errstate(over="ignore"):  # whoever builds the cell sees what became infinite
        for chunk in in_float64(rows):
            found[first : first + len(chunk)] = (chunk - shift) / scale
            first += len(chunk)
    return torch.from_numpy(found)


def patch_shape(dim: int) -> tuple[int, int]:
    """Height and width of the squarest patch of ``dim`` pixels; if over four times as wide, of a square to crop."""
    height = next(h for h in range(math.isqrt(dim), 0, -1) if dim % h == 0)
    if dim // height <= 4 * height:
        return height, dim // height
    height = math.isqrt(dim - 1) + 1 if dim > 1 else 1
    return height, height


def _counts(rows: int | None, dim: int) -> tuple[int, int, int]:
    """How many train, validation and held-out rows to draw."""
    train = max(1, min(MOST_ROWS, MOST_VALUES // dim)) if rows is None else rows
    return train, min(train, EVALUATION_ROWS), min(train, EVALUATION_ROWS)


def _split(rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(counts)[:-1])


def shipped(name: str) -> Path:
    """Find a file of ``sklearn.datasets``, whose loaders take two seconds to import.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed, whose photographs and digits are the data here")
    return Path(sklearn.origin).parent / "datasets" / name
