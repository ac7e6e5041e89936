"""Rows in three splits, standardised; and what the loaders share.

Every loader is called as ``load(dim=..., rows=..., seed=...)`` and returns train, validation and held-out rows: three
splits that share nothing, centred by dimension (``centre=False`` leaves the mean in) and scaled as a whole, all by
the train rows' figures. ``rows`` counts the train rows; None for as many as the loader thinks right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepscale.models import Batch

MOST_ROWS, MOST_VALUES = 50_000, 2**25  # of a train split whose size is left to the loader
EVALUATION_ROWS = 2_000  # most validation rows, and most held-out rows, of what is drawn at random


class Dataset(NamedTuple):
    """Three splits, a remark for the record, and what is known of the rows.

    A split is float32, ``[rows, dim]``, or such inputs and their targets.
    """

    train: Batch
    validation: Batch
    held_out: Batch
    note: str
    shape: tuple[int, int] | None = None  # height and width, where a row is an image drawn row by row
    mixing: Tensor | None = None  # float64 M, [dim, dim], where x = s Mᵀ for independent sources s, less the mean
    bits_offset: float = 0.0  # bits a dimension from the rows' own unit to the one they are quoted in: 8-bit pixels

    @property
    def splits(self) -> tuple[Batch, Batch, Batch]:
        return self.train, self.validation, self.held_out


def standardised(
    parts: Sequence[np.ndarray], note: str, centre: bool = True, *, mixing: np.ndarray | None = None
) -> Dataset:
    """Subtract the train rows' mean by dimension, unless not to ``centre``, and divide by their one standard deviation.

    Args:
        parts: train, validation and held-out rows, ``[rows, dim]``.
        note: of the result.
        centre: whether to subtract; the deviation is about the mean either way.
        mixing: M with x = s Mᵀ, in the units of ``parts``; the result's is in its own.

    Raises:
        ValueError: the train rows are all the same.
    """
    mean = parts[0].mean(axis=0)
    scale = (parts[0] - mean).std()
    if not scale > 0:
        raise ValueError(f"the train rows of {note} are all the same: nothing to learn from")
    shift = mean if centre else 0.0
    train, validation, held_out = (
        torch.from_numpy(np.asarray((part - shift) / scale, dtype=np.float32)) for part in parts
    )
    matrix = None if mixing is None else torch.from_numpy(mixing / scale)
    return Dataset(train, validation, held_out, note, mixing=matrix)


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
