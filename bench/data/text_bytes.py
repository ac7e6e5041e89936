"""Bytes of text for a language model: of Python's own standard library, or of a file of the user's."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path

import numpy as np
import torch

from stepscale.bench.data.dataset import MOST_ROWS, Dataset
from stepscale.models import Batch

EVALUATION_TOKENS = 2**15  # most of the validation rows, and most of the held-out rows
FILES_SEED = 0  # of the order of the library's files: neighbours in the alphabet are alike


def text(dim: int, rows: int | None, seed: int, path: str | None = None) -> Dataset:
    """Return rows of ``dim`` bytes, and as targets the byte after each: int64, 0 … 255, ``[rows, dim]`` both.

    The text is cut in three, in its own order: three quarters to train, an eighth to validate, an eighth held out; then
    each into rows one after the other, which share no byte.

    Args:
        dim: bytes of a row: the context of the model.
        rows: train rows, of those there are, drawn by ``seed``; None for all up to a limit.
        seed: of which rows, and of their order. The split does not depend on it.
        path: of the user's own file; None for the modules of Python's standard library.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it and the remedy.
    """
    found, note = _library() if path is None else (_own(Path(path)), f"bytes of {path}")
    symbols = np.frombuffer(found, np.uint8)
    cuts = np.split(symbols, [len(symbols) * 6 // 8, len(symbols) * 7 // 8])
    if len(cuts[-1]) <= dim:
        raise ValueError(f"{note}: {len(found)} in all, a row is of {dim}; expected {8 * (dim + 1)}: lower data.dim")
    few = max(1, EVALUATION_TOKENS // dim)
    limits = MOST_ROWS if rows is None else rows, few, few
    train, validation, held_out = (
        _rows(cut, dim, most, order) for cut, most, order in zip(cuts, limits, (seed, 0, 0), strict=True)
    )
    return Dataset(train, validation, held_out, note)


def _rows(symbols: np.ndarray, dim: int, most: int, seed: int) -> Batch:
    """Return rows and their targets, at most so many, drawn by a seed."""
    count = (len(symbols) - 1) // dim
    chosen = np.random.default_rng(seed).permutation(count)[:most]
    inputs, targets = (symbols[first : first + count * dim].reshape(count, dim)[chosen] for first in (0, 1))
    return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))


def _library() -> tuple[bytes, str]:
    """Return the modules of the standard library as one text: its packages, which may lack parts, are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.glob("*.py"))
    if not paths:
        raise FileNotFoundError(f"no sources of Python's standard library are in {folder}: set data.path to a text")
    order = np.random.default_rng(FILES_SEED).permutation(len(paths))
    note = f"bytes of the {len(paths)} modules of Python {platform.python_version()}'s standard library"
    return b"\n".join(paths[k].read_bytes() for k in order), note


def _own(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}; set data.path")
    return path.read_bytes()
