"""Data of your own: a file of numbers, or a function that returns a ``Dataset``."""

import tempfile
from pathlib import Path

import numpy as np

from stepscale.bench.data.dataset import Dataset, standardised
from stepscale.bench.data.user_file import load


def waves(dim: int, rows: int | None, seed: int, centre: bool = True) -> Dataset:
    """Sine waves of random phase and frequency: ``stepscale data._target_=own_data.waves``."""
    rng, time = np.random.default_rng(seed), np.linspace(0, 1, dim)
    parts = []
    for count in (rows or 10_000, 1_000, 1_000):  # train, validation, held out
        phase, frequency = rng.random((2, count, 1))
        noise = 0.1 * rng.standard_normal((count, dim))
        parts.append(np.sin(2 * np.pi * (phase + 4 * frequency * time)) + noise)
    return standardised(parts, "sine waves of random phase and frequency", centre)


if __name__ == "__main__":
    print(waves(dim=16, rows=500, seed=0).train.shape)
    with tempfile.TemporaryDirectory() as folder:
        np.save(path := Path(folder) / "rows.npy", np.random.default_rng(0).normal(size=(800, 16)))
        data = load(str(path), dim=16, rows=400, seed=0)  # stepscale data=file data.path=rows.npy dim=16
        print(data.train.shape, data.validation.shape, data.held_out.shape)
