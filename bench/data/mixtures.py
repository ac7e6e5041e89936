"""Laplace sources, mixed."""

from __future__ import annotations

import numpy as np

from stepscale.bench.data.dataset import Dataset, _counts, _split, standardised


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
