"""Images in 0 … 1 for autoencoders and classifiers: scikit-learn's digits at any resolution, and drawn curves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stepscale.bench.data import EVALUATION_ROWS, Dataset, patch_shape, shipped
from stepscale.models import Batch

LEVELS = 16  # of scikit-learn's digits
CURVE_ROWS = 20_000  # of a train split whose size is left to the loader, as in the original
CURVE_POINTS, WIDTH = 24, 0.07  # along a curve, and its width as a share of the image


def digits(dim: int, rows: int | None, seed: int, labels: bool = False) -> Dataset:
    """The 1,797 digits of scikit-learn, 8×8 and 0 … 16, resampled bilinearly to h×w = dim and scaled to 0 … 1.

    Five eighths of them are for training, an eighth for validation, a quarter is held out, all drawn by the seed; if
    more train rows are asked for than there are, they repeat. With ``labels`` every split is a pair (images, labels).
    """
    table = torch.from_numpy(np.loadtxt(shipped("data/digits.csv.gz"), delimiter=",", dtype=np.float32))
    shape = patch_shape(dim)
    small = table[:, :-1].reshape(-1, 1, 8, 8) / LEVELS
    resized = torch.nn.functional.interpolate(small, size=shape, mode="bilinear", align_corners=False)
    images = resized.flatten(1)[:, :dim].clamp(0, 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    cuts = [len(images) * 5 // 8, len(images) * 6 // 8]
    train, validation, held_out = order.tensor_split(cuts)
    if rows is not None:
        train = train.repeat(-(-rows // len(train)))[:rows]
    targets = table[:, -1].long()

    def split(chosen: Tensor) -> Batch:
        return (images[chosen], targets[chosen]) if labels else images[chosen]

    note = f"scikit-learn's digits at {shape[0]}x{shape[1]}"
    return Dataset(split(train), split(validation), split(held_out), note, shape=_shape(dim))


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


def _shape(dim: int) -> tuple[int, int] | None:
    height, width = patch_shape(dim)
    return (height, width) if height * width == dim else None


def _drawn(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Draw quadratic Bézier curves: of each pixel, 1 − (distance / width)², none below 0; ``[count, dim]``."""
    height, width = patch_shape(dim)
    t = np.linspace(0, 1, CURVE_POINTS)[:, None]
    weights = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1).astype(np.float32)
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)[:dim]
    image = np.empty((count, dim), np.float32)
    for k in range(count):
        points = weights @ rng.uniform(0.1, 0.9, (3, 2)).astype(np.float32)
        squares = ((pixels[:, None] - points) ** 2).sum(2).min(1)
        image[k] = np.maximum(0, 1 - squares / WIDTH**2)
    return image
