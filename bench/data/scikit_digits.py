"""The digits that scikit-learn ships, at any resolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stepscale.bench.data.dataset import Dataset, patch_shape, shipped
from stepscale.models import Batch

LEVELS = 16  # of scikit-learn's digits


def digits(dim: int, rows: int | None, seed: int, labels: bool = False, binary: bool = False) -> Dataset:
    """The 1,797 digits of scikit-learn, 8×8 and 0 … 16, resampled bilinearly to h×w = dim and scaled to 0 … 1.

    Five eighths of them are for training, an eighth for validation, a quarter is held out, all drawn by the seed; if
    more train rows are asked for than there are, they repeat. With ``labels`` every split is a pair (images, labels).
    With ``binary`` a pixel is 1 where it is above ½, and else 0.
    """
    table = torch.from_numpy(np.loadtxt(shipped("data/digits.csv.gz"), delimiter=",", dtype=np.float32))
    shape = patch_shape(dim)
    small = table[:, :-1].reshape(-1, 1, 8, 8) / LEVELS
    resized = torch.nn.functional.interpolate(small, size=shape, mode="bilinear", align_corners=False)
    images = resized.flatten(1)[:, :dim].clamp(0, 1)
    images = (images > 0.5).float() if binary else images
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


def _shape(dim: int) -> tuple[int, int] | None:
    height, width = patch_shape(dim)
    return (height, width) if height * width == dim else None
