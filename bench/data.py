"""Photographs, synthetic mixtures, toy densities -> standardised rows.

Every loader is called as ``load(dim=..., rows=..., seed=...)`` and returns train, validation and held-out rows: three
splits that share nothing, centred by dimension (``centre=False`` leaves the mean in) and scaled as a whole, all by
the train rows' figures. ``rows`` counts the train rows; None for as many as the loader thinks right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stepscale.models import Batch

PHOTOS = ("china.jpg", "flower.jpg")
PHOTO_LIMIT = 4096  # widest patch
PHOTO_EDGES = (0, 3 / 5, 4 / 5, 1)  # of a photograph's width; the narrowest strip, 128 pixels, holds the widest patch
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


def photos(dim: int, rows: int | None, seed: int, centre: bool = True) -> Dataset:
    """Grey patches of the photographs that scikit-learn ships, dequantised.

    Train patches come from the left three fifths of each photograph, validation patches from the next fifth, held-out
    patches from the last: no pixel in two. Above dim 4,096 the rows are Laplace noise, and the note says so: time
    does not depend on the values.
    """
    rng, counts = np.random.default_rng(seed), _counts(rows, dim)
    if dim > PHOTO_LIMIT:
        note = f"Laplace noise: photos end at dim {PHOTO_LIMIT}, and time does not depend on values"
        return standardised(_split(rng.laplace(size=(sum(counts), dim)), counts), note, centre)
    height, width = patch_shape(dim)
    images = [_grey(name) for name in PHOTOS]
    edges = [round(images[0].shape[1] * edge) for edge in PHOTO_EDGES]
    strips = [[image[:, left:right] for image in images] for left, right in itertools.pairwise(edges)]
    shape = (height, width)
    parts = [_patches(strip, count, shape, rng)[:, :dim] for strip, count in zip(strips, counts, strict=True)]
    found = standardised(parts, f"{height}x{width} grey patches of {', '.join(PHOTOS)}", centre)
    deviation = (parts[0] - parts[0].mean(axis=0)).std()  # of values in 0 … 1
    bits = 8 + math.log2(deviation)
    return found._replace(shape=shape if dim == height * width else None, bits_offset=bits)


def mixture(dim: int, rows: int | None, seed: int, depth: int = 1, centre: bool = True) -> Dataset:
    """Laplace sources through ``depth`` random linear mixings with a leaky rectifier between; 0 leaves them unmixed.

    Sources have unit scale, that is variance 2. Up to depth 1 the result has its ``mixing``. O(d³) a mixing.
    """
    if depth < 0:
        raise ValueError(f"depth of the mixing must be at least 0, got {depth}")
    rng, counts = np.random.default_rng(seed), _counts(rows, dim)
    x = rng.laplace(size=(sum(counts), dim))
    matrix = np.eye(dim)
    for k in range(depth):
        x = np.where(x > 0, x, 0.3 * x) if k else x
        matrix = _mixing(dim, rng)
        x = x @ matrix
    note = f"Laplace sources, {depth} mixings"
    return standardised(_split(x, counts), note, centre, mixing=matrix.T if depth < 2 else None)


def _mixing(dim: int, rng: np.random.Generator) -> np.ndarray:
    """Random rotations about a fixed spectrum, so that the likelihoods of different mixings can be compared.

    The spectrum is even from 1/d on, which is near that of Gaussian entries.
    """
    left, right = (np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(2))
    spectrum = np.arange(1, dim + 1) / dim
    return (left * (spectrum / np.sqrt(np.mean(spectrum**2)))) @ right


def toy(dim: int, rows: int | None, seed: int, name: str = "moons", centre: bool = True) -> Dataset:
    """A density in the plane: moons, circles, pinwheel or eight_gaussians.

    Raises:
        ValueError: the model's dim is not 2, or there is no such density.
    """
    if dim != 2:
        raise ValueError(f"toy data have dim 2, got dim={dim}; set dim=2")
    counts = _counts(rows, dim)
    return standardised(_split(_plane(name, sum(counts), seed), counts), f"toy density {name}", centre)


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


def _patches(images: list[np.ndarray], rows: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
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
    return np.asarray(np.asarray(Image.open(shipped(f"images/{name}"))) @ np.array([0.299, 0.587, 0.114])).round()


def shipped(name: str) -> Path:
    """Find a file of ``sklearn.datasets``, whose loaders take two seconds to import.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed, whose photographs and digits are the data here")
    return Path(sklearn.origin).parent / "datasets" / name


def _plane(name: str, count: int, seed: int) -> np.ndarray:
    """Return points of the density of that name, ``[count, 2]``, independent but for the even angles of two of them."""
    match name:
        case "moons":
            from sklearn.datasets import make_moons

            points, _ = make_moons(count, noise=0.05, random_state=seed)
        case "circles":
            from sklearn.datasets import make_circles

            points, _ = make_circles(count, noise=0.05, factor=0.5, random_state=seed)
        case "pinwheel":
            points = _pinwheel(count, np.random.default_rng(seed))
        case "eight_gaussians":
            points = _eight_gaussians(count, np.random.default_rng(seed))
        case _:
            raise ValueError(f"no toy density is named {name}; choose moons, circles, pinwheel or eight_gaussians")
    return np.asarray(points)


def _pinwheel(count: int, rng: np.random.Generator) -> np.ndarray:
    """Five arms: z = (r + i t) exp(i (2πk/5 + exp(r) / 4)), r ~ N(1, 0.3²), t ~ N(0, 0.1²), k = 0 … 4."""
    r, t = 1 + 0.3 * rng.standard_normal(count), 0.1 * rng.standard_normal(count)
    z = (r + 1j * t) * np.exp(1j * (2 * np.pi * rng.integers(5, size=count) / 5 + np.exp(r) / 4))
    return np.stack([z.real, z.imag], axis=1)


def _eight_gaussians(count: int, rng: np.random.Generator) -> np.ndarray:
    """Centres evenly on a circle of radius 4, standard deviation 0.5."""
    angle = 2 * np.pi * rng.integers(8, size=count) / 8
    return 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.5 * rng.standard_normal((count, 2))
