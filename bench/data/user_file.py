"""The user's own file of numbers -> standardised rows."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from stepscale.bench.data.dataset import Dataset, standardised


def load(path: str, dim: int, rows: int | None, seed: int, centre: bool = True, raw: bool = False) -> Dataset:
    """Return the user's own ``.npy``, ``.npz`` (its only array) or ``.csv`` of numbers, ``[rows, dim]``.

    The first five eighths of the rows are for training, the next eighth for validation, the last quarter is held out;
    train rows are drawn in random order. ``raw`` leaves the values as they are, 0 … 1 for Bernoulli outputs.

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
    train, validation, held_out = np.split(array, [len(array) * 5 // 8, len(array) * 6 // 8])
    needed = 1 if rows is None else rows
    if len(train) < needed:
        raise ValueError(
            f"{path} has {len(array)} rows, of which {len(train)} are for training; {needed} are needed:"
            " lower batch, or add rows"
        )
    order = np.random.default_rng(seed).permutation(len(train))[:rows]
    parts = [train[order], validation, held_out]
    if raw:
        plain = [torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in parts]
        return Dataset(plain[0], plain[1], plain[2], str(path))
    return standardised(parts, str(path), centre)


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
    import pandas as pd

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
