"""Photographs, synthetic mixtures, the user's own file -> standardised rows.

Every loader is called as ``load(dim=..., rows=..., seed=...)`` and returns train and held-out rows, centred by
dimension and scaled as a whole, both by the train rows' figures.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

PHOTOS = ("china.jpg", "flower.jpg")
PHOTO_LIMIT = 4096  # widest patch
HELD_OUT = 0.25  # share of a photograph's width, or of a file's rows


class Dataset(NamedTuple):
    """Rows of float32, ``[rows, dim]``, and a remark for the record."""

    train: Tensor
    held_out: Tensor
    note: str


def photos(dim: int, rows: int, seed: int) -> Dataset:
    """Grey patches of the photographs that scikit-learn ships, dequantised.

    Held-out patches come from the right quarter of each photograph, train patches from the rest: no pixel in both.
    Above dim 4,096 the rows are Laplace noise, and the note says so: time does not depend on the values.
    """
    if dim > PHOTO_LIMIT:
        noise = mixture(dim, rows, seed, depth=0)
        return noise._replace(
            note=f"Laplace noise: photos end at dim {PHOTO_LIMIT}, and time does not depend on values"
        )
    rng = np.random.default_rng(seed)
    height, width = patch_shape(dim)
    images = [_grey(name) for name in PHOTOS]
    split = round(images[0].shape[1] * (1 - HELD_OUT))
    train = _patches([image[:, :split] for image in images], (height, width), rows, rng)
    held_out = _patches([image[:, split:] for image in images], (height, width), rows, rng)
    return standardised(train[:, :dim], held_out[:, :dim], f"{height}x{width} grey patches of {', '.join(PHOTOS)}")


def mixture(dim: int, rows: int, seed: int, depth: int = 1) -> Dataset:
    """Laplace sources through ``depth`` random linear mixings with a leaky rectifier between; 0 leaves them unmixed."""
    if depth < 0:
        raise ValueError(f"depth of the mixing must be at least 0, got {depth}")
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=(2 * rows, dim))
    for k in range(depth):
        x = np.where(x > 0, x, 0.3 * x) if k else x
        x = x @ (rng.standard_normal((dim, dim)) / math.sqrt(dim))
    return standardised(x[:rows], x[rows:], f"Laplace sources, {depth} mixings")


def file(path: str, dim: int, rows: int, seed: int) -> Dataset:
    """Return the user's own ``.npy``, ``.npz`` (its only array) or ``.csv`` of numbers, ``[rows, dim]``.

    The last quarter of the rows is held out; train rows are drawn from the rest, in random order.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it and what was expected.
    """
    array = _read(Path(path))
    if array.ndim != 2:
        raise ValueError(f"{path} holds an array of shape {array.shape}; expected [rows, dim]")
    if array.shape[1] != dim:
        raise ValueError(f"{path} has rows of dim {array.shape[1]}, the model has dim {dim}; set dim={array.shape[1]}")
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"{path} holds {array.dtype}; expected real numbers")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"{path} has {len(bad)} rows with NaN or infinity, the first is row {bad[0]}; remove them")
    split = round(len(array) * (1 - HELD_OUT))
    if split < rows:
        raise ValueError(
            f"{path} has {len(array)} rows, of which {split} are for training; {rows} are needed:"
            " lower batch, or add rows"
        )
    order = np.random.default_rng(seed).permutation(split)[:rows]
    return standardised(array[order], array[split:], str(path))


def standardised(train: np.ndarray, held_out: np.ndarray, note: str) -> Dataset:
    """Subtract the train rows' mean by dimension and divide by their one standard deviation.

    Raises:
        ValueError: the train rows are all the same.
    """
    mean = train.mean(axis=0)
    scale = (train - mean).std()
    if not scale > 0:
        raise ValueError(f"the train rows of {note} are all the same: nothing to learn from")
    train, held_out = (np.asarray((part - mean) / scale, dtype=np.float32) for part in (train, held_out))
    return Dataset(torch.from_numpy(train), torch.from_numpy(held_out), note)


def patch_shape(dim: int) -> tuple[int, int]:
    """Height and width of the squarest patch of ``dim`` pixels; if over four times as wide, of a square to crop."""
    height = next(h for h in range(math.isqrt(dim), 0, -1) if dim % h == 0)
    if dim // height <= 4 * height:
        return height, dim // height
    height = math.isqrt(dim - 1) + 1 if dim > 1 else 1
    return height, height


def _patches(images: list[np.ndarray], shape: tuple[int, int], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Cut ``rows`` patches at random places, as many of each image, in random order; ``[rows, h·w]``."""
    found = []
    for k, image in enumerate(images):
        windows = np.lib.stride_tricks.sliding_window_view(image, shape)
        count = len(range(k, rows, len(images)))
        top, left = (rng.integers(0, windows.shape[axis], count) for axis in (0, 1))
        found.append(windows[top, left].reshape(count, -1))
    patches = np.concatenate(found)
    return rng.permutation(patches + rng.random(patches.shape)) / 256


def _grey(name: str) -> np.ndarray:
    """Return a photograph's luminance, ``[427, 640]``, 0 … 255."""
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image(name) @ np.array([0.299, 0.587, 0.114])).round()


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}; set data.path")
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix not in {".npy", ".npz"}:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; expected .npy, .npz or .csv")
    try:
        loaded = np.load(path)
        if path.suffix == ".npy":
            return np.asarray(loaded)
        names = list(loaded)
        if len(names) != 1:
            raise ValueError(f"it holds the arrays {', '.join(names) or '(none)'}; expected one")
        return np.asarray(loaded[names[0]])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read_csv(path: Path) -> np.ndarray:
    """Read numbers; a first line without any is a header."""
    try:
        table = pd.read_csv(path, header=None)
        if len(table) and pd.to_numeric(table.iloc[0], errors="coerce").isna().all():
            table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path} cannot be read: {error}") from error
    words = [str(column) for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    if words:
        raise ValueError(f"{path} holds something else than numbers in column {words[0]}")
    return table.to_numpy()
