"""Grey patches of the photographs that scikit-learn ships."""

from __future__ import annotations

import itertools
import math

import numpy as np
from PIL import Image

from stepscale.bench.data.dataset import Dataset, _counts, _split, patch_shape, shipped, standardised

PHOTOS = ("china.jpg", "flower.jpg")
PHOTO_LIMIT = 4096  # widest patch
PHOTO_EDGES = (0, 3 / 5, 4 / 5, 1)  # of a photograph's width; the narrowest strip, 128 pixels, holds the widest patch


def photos(dim: int, rows: int | None, seed: int, centre: bool = True) -> Dataset:
    """Grey patches of the photographs that scikit-learn ships, dequantised.

    Train patches come from the left three fifths of each photograph, validation patches from the next fifth, held-out
    patches from the last: no pixel in two. Above dim 4,096 the rows are Laplace noise, and the note says so: a
    step takes as long on them, as on all values that are not subnormal.
    """
    rng, counts = np.random.default_rng(seed), _counts(rows, dim)
    if dim > PHOTO_LIMIT:
        note = f"Laplace noise: photos end at dim {PHOTO_LIMIT}; a step takes as long on it"
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
