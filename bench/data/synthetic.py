"""Rows whose density is known: mixtures of Laplace sources, densities in the plane, and lines."""

from __future__ import annotations

import math

import numpy as np
import torch

from stepscale.bench.data.dataset import Dataset, _counts, _split, standardised

MOST_LINES = 8  # pixels along an edge: 762 rows that are likely


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


def lines(dim: int, rows: int | None, seed: int) -> Dataset:
    """Binary images of k × k = dim pixels whose rows are all the same, or whose columns are, vertical twice as often.

    That is the Three-by-Three Lines of Helmholtz machines at k = 3: 12 patterns and an entropy of 2.4283 nats; in
    general 2 (2ᵏ − 2), as neither all pixels nor none are set. Train rows are drawn. The validation and held-out rows
    are every pattern as often as it is likely, so that a likelihood of them is the exact expectation.

    Raises:
        ValueError: ``dim`` is no square of at least 2, or there are too many patterns to list.
    """
    k = math.isqrt(dim)
    if k * k != dim or not 2 <= k <= MOST_LINES:
        raise ValueError(f"lines are images of k × k pixels, k from 2 to {MOST_LINES}, got dim={dim}; set dim=9")
    codes = np.arange(1, 2**k - 1)[:, None] >> np.arange(k) & 1
    vertical, horizontal = np.tile(codes, k), np.repeat(codes, k, axis=1)
    likely = torch.from_numpy(np.concatenate([vertical, vertical, horizontal]).astype(np.float32))
    chosen = np.random.default_rng(seed).integers(len(likely), size=_counts(rows, dim)[0])
    return Dataset(likely[chosen], likely, likely, f"lines of {k}x{k} pixels", shape=(k, k))


def toy(dim: int, rows: int | None, seed: int, name: str = "moons", centre: bool = True) -> Dataset:
    """A density in the plane: moons, circles, pinwheel or eight_gaussians.

    Raises:
        ValueError: the model's dim is not 2, or there is no such density.
    """
    if dim != 2:
        raise ValueError(f"toy data have dim 2, got dim={dim}; set dim=2")
    counts = _counts(rows, dim)
    return standardised(_split(_plane(name, sum(counts), seed), counts), f"toy density {name}", centre)


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
