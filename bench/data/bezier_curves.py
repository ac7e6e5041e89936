"""Drawn curves: images with six degrees of freedom."""

from __future__ import annotations

import numpy as np
import torch

from stepscale.bench.data.dataset import EVALUATION_ROWS, Dataset, patch_shape
from stepscale.bench.data.scikit_tables import _shape

CURVE_ROWS = 20_000  # of a train split whose size is left to the loader, as in the original
TOGETHER = 64  # curves drawn at once: what is drawn of them stays in the cache
CURVE_POINTS, WIDTH = 24, 0.07  # along a curve, and its width as a share of the image


def curves(dim: int, rows: int | None, seed: int) -> Dataset:
    """Bézier curves of three random points, with soft edges, on h×w = dim, 0 … 1: six degrees of freedom.

    Like CURVES of Hinton & Salakhutdinov 2006, which is not this: drawn here, so that nothing has to be downloaded.
    """
    rng = np.random.default_rng(seed)
    train = CURVE_ROWS if rows is None else rows
    counts = [train, min(train, EVALUATION_ROWS), min(train, EVALUATION_ROWS)]
    parts = [torch.from_numpy(_drawn(count, dim, rng)) for count in counts]
    note = f"curves like CURVES at {'x'.join(map(str, patch_shape(dim)))}"
    return Dataset(parts[0], parts[1], parts[2], note, shape=_shape(dim))


def _drawn(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Draw quadratic Bézier curves: of each pixel, 1 − (distance / width)², none below 0; ``[count, dim]``."""
    height, width = patch_shape(dim)
    t = np.linspace(0, 1, CURVE_POINTS)[:, None]
    weights = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1).astype(np.float32)
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)[:dim]
    image = np.empty((count, dim), np.float32)
    for first in range(0, count, TOGETHER):
        some = image[first : first + TOGETHER]
        points = weights @ rng.uniform(0.1, 0.9, (len(some), 3, 2)).astype(np.float32)
        squares = np.full_like(some, np.inf)
        for across, down in np.moveaxis(points, (1, 2), (0, 1)):  # a point of each curve at a time
            away = (pixels[:, 0] - across[:, None]) ** 2 + (pixels[:, 1] - down[:, None]) ** 2
            np.minimum(squares, away, out=squares)
        some[:] = np.maximum(0, 1 - squares / WIDTH**2)
    return image
