"""What scikit-learn ships: digits, at any resolution, and tables for regressions; and made ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stepscale.bench.data.dataset import Dataset, patch_shape, shipped
from stepscale.models import Batch

LEVELS = 16  # of scikit-learn's digits
TABLES = {  # name: likelihood that suits it, file, lines of heading, separator, file of the targets
    "breast_cancer": ("logistic", "breast_cancer.csv", 1, ",", None),
    "wine": ("logistic", "wine_data.csv", 1, ",", None),  # the first of three growers, or not
    "diabetes": ("linear", "diabetes_data_raw.csv.gz", 0, None, "diabetes_target.csv.gz"),
}
PAPERS = (0.1, 0.3, -1.0, 2.0)  # coefficients of the made regression with three inputs (Magris et al. 2022)


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


def regression(dim: int, rows: int | None, seed: int, table: str = "made", likelihood: str = "logistic") -> Dataset:
    """Inputs and targets for the posterior of a regression, ``[rows, dim]`` and ``[rows]``.

    A posterior is of given rows, so that there are none to hold out: all three splits are the same.

    Args:
        dim: inputs; of a table its first columns, each standardised.
        rows: None for 1,000 made ones, or all of a table; more of it than there are repeat, as where a step is timed.
        seed: of what is made; a table's rows are as they are.
        table: ``"made"``, uniform inputs in 0 … 1 and drawn targets; ``"breast_cancer"``, ``"wine"`` or ``"diabetes"``.
        likelihood: of made targets: ``"linear"`` with noise ½, ``"logistic"``, ``"poisson"``. A table has its own.

    Raises:
        ValueError: there is no such table or likelihood, or the table has not so many columns.
    """
    x, y = _made(dim, rows or 1000, seed, likelihood) if table == "made" else _table(table, dim, rows)
    both = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    return Dataset(both, both, both, f"{table} regression, {len(x)} rows")


def _made(dim: int, rows: int, seed: int, likelihood: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.array(PAPERS) if dim == len(PAPERS) - 1 else 2 * rng.standard_normal(dim + 1) / np.sqrt(dim + 1)
    x = rng.random((rows, dim))
    u = truth[0] + x @ truth[1:]
    match likelihood:
        case "linear":
            return x, u + 0.5 * rng.standard_normal(rows)
        case "logistic":
            return x, (rng.random(rows) < 1 / (1 + np.exp(-u))).astype(float)
        case "poisson":
            return x, rng.poisson(np.exp(u)).astype(float)
    raise ValueError(f"data.likelihood must be linear, logistic or poisson, got {likelihood!r}")


def _table(name: str, dim: int, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    if name not in TABLES:
        raise ValueError(f"data.table must be made or one of {', '.join(TABLES)}, got {name!r}")
    likelihood, file, heading, separator, targets = TABLES[name]
    values = np.loadtxt(shipped(f"data/{file}"), delimiter=separator, skiprows=heading)
    x, y = (values[:, :-1], values[:, -1]) if targets is None else (values, np.loadtxt(shipped(f"data/{targets}")))
    if dim > x.shape[1]:
        raise ValueError(f"{name} has {x.shape[1]} inputs, got dim={dim}: set dim={x.shape[1]}")
    y = (y - y.mean()) / y.std() if likelihood == "linear" else (y == 0).astype(float)
    x = ((x - x.mean(0)) / x.std(0))[:, :dim]
    return (x, y) if rows is None else (np.resize(x, (rows, dim)), np.resize(y, rows))


def _shape(dim: int) -> tuple[int, int] | None:
    height, width = patch_shape(dim)
    return (height, width) if height * width == dim else None
