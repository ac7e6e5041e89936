"""The user's own file of numbers -> standardised rows, or the values as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepscale.bench.data.dataset import Dataset, in_float64, standardised
from stepscale.bench.data.reading import Numbers, read

SPLIT_SEED = 0  # of the order in which a file is cut in three: the same for every optimizer and every cell's seed


def load(
    path: str,
    dim: int,
    rows: int | None,
    seed: int,
    *,
    centre: bool = True,
    raw: bool = False,
    shuffle: bool = True,
    label: str | None = None,
    tokens: bool = False,
) -> Dataset:
    """Return the user's own ``.npy``, ``.npz`` (its only array, or the one named rows) or ``.csv``, ``[rows, dim]``.

    Five eighths of the rows are for training, an eighth for validation, a quarter is held out, at least one each.
    Likelihoods are quoted in the file's own units.

    Args:
        path: of the file.
        dim: width of the rows; a first column besides that only counts them is left out.
        rows: train rows, in an order drawn by ``seed``; None for all.
        seed: of that order. The split does not depend on it.
        centre: whether to subtract the mean; a standard deviation divides in either case.
        raw: whether to leave the values as they are, 0 … 1 for Bernoulli outputs.
        shuffle: whether to mix the rows before they are split; else the file's order decides.
        label: the column, or the array of a ``.npz``, that holds labels; every split is then a pair (rows, labels).
        tokens: whether to leave whole numbers whole, int64; else they are numbers like all others.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it and what was expected.
    """
    found = _without_index(read(Path(path), label), dim)
    array = found.rows
    _check(array, path, dim, tokens)
    if found.labels is not None and len(found.labels) != len(array):
        raise ValueError(f"{path} has {len(array)} rows and {len(found.labels)} labels; expected one each")
    orders = _split(len(array), path, shuffle)
    needed = 1 if rows is None else rows
    if len(orders[0]) < needed:
        raise ValueError(
            f"{path} has {len(array)} rows, of which {len(orders[0])} are for training; {needed} are needed:"
            " lower batch, or add rows"
        )
    orders[0] = orders[0][np.random.default_rng(seed).permutation(len(orders[0]))[:rows]]
    note, parts = "; ".join([path, *found.remarks]), [array[order] for order in orders]
    if raw or tokens:
        plain = [torch.from_numpy(_plain(part, tokens)) for part in parts]
        made = Dataset(plain[0], plain[1], plain[2], note)
    else:
        made = standardised(parts, path, centre, quoted=True)._replace(note=note)
    splits = [split for split in made.splits if isinstance(split, Tensor)]
    _check_made(splits, orders, path, made.rescaling is not None)
    if not splits[0].any() and parts[0].any():
        raise ValueError(f"{path} has values so small that float32 makes them all 0; leave out data.raw, or rescale")
    if found.labels is None:
        return made
    labels = [torch.from_numpy(found.labels[order]) for order in orders]
    train, validation, held_out = zip(splits, labels, strict=True)
    return made._replace(train=train, validation=validation, held_out=held_out)


def _without_index(found: Numbers, dim: int) -> Numbers:
    """Leave out a first column that only counts the rows, in any order, where the file is not of the dim without it."""
    rows = found.rows
    if rows.ndim != 2 or rows.shape[1] < 2 or len(rows) < 2 or rows.dtype.kind not in "iuf":
        return found
    first = np.sort(rows[:, 0])
    if first[0] not in (0, 1) or not np.array_equal(first, first[0] + np.arange(len(first))):
        return found
    if rows.shape[1] == dim:
        return found._replace(remarks=[*found.remarks, "its first column only counts the rows: is it an index?"])
    remark = f"its first column only counts the rows from {first[0]:g} and is left out as an index"
    return found._replace(rows=rows[:, 1:], remarks=[*found.remarks, remark])


def _check(array: np.ndarray, path: str, dim: int, tokens: bool) -> None:
    """See that a file holds finite numbers of the model's width.

    Raises:
        ValueError: it does not.
    """
    if array.ndim != 2:
        raise ValueError(f"{path} holds an array of shape {array.shape}; expected [rows, dim]")
    if array.shape[1] != dim:
        raise ValueError(f"{path} has rows of dim {array.shape[1]}, the model has dim {dim}; set dim={array.shape[1]}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {array.dtype}; expected real numbers")
    if tokens and array.dtype.kind not in "biu":
        raise ValueError(f"{path} holds {array.dtype}; data.tokens=true expects whole numbers, saved as integers")
    if array.dtype.kind == "f":
        bad = np.flatnonzero(np.concatenate([~np.isfinite(chunk).all(axis=1) for chunk in in_float64(array)] or [[]]))
        if len(bad):
            raise ValueError(f"{path} has {len(bad)} rows with NaN or infinity, the first is row {bad[0]}; remove them")


def _split(count: int, path: str, shuffle: bool) -> list[np.ndarray]:
    """Return which rows are for training, for validation, and held out.

    Raises:
        ValueError: there is not one for each.
    """
    if count < 3:
        raise ValueError(f"{path} has {count} rows; expected at least 3: to train on, to validate with, to hold out")
    order = np.random.default_rng(SPLIT_SEED).permutation(count) if shuffle else np.arange(count)
    held_out = max(1, count - count * 6 // 8)
    validation = max(1, count * 6 // 8 - count * 5 // 8)
    return np.split(order, [count - held_out - validation, count - held_out])


def _plain(part: np.ndarray, tokens: bool) -> np.ndarray:
    """Return values as they are, of a type that torch computes with."""
    with np.errstate(over="ignore"):  # what becomes infinite is refused afterwards
        return part.astype(np.int64 if tokens else np.float32)


def _check_made(splits: Sequence[Tensor], orders: Sequence[np.ndarray], path: str, scaled: bool) -> None:
    """See that no value became infinite in the type that the rows now have.

    Raises:
        ValueError: naming the file's row.
    """
    for split, order in zip(splits, orders, strict=True):
        bad = order[~torch.isfinite(split).all(dim=1).numpy()]
        if len(bad):
            raise ValueError(
                f"{path} has in row {bad.min()} a value above 3.4e38{' even after scaling' if scaled else ''}, which"
                " float32 cannot hold; rescale it, or remove that row"
            )
