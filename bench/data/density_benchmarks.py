"""The arrays of the usual density benchmarks, exactly as published: Papamakarios, Pavlakou & Murray 2017.

A loader reads its file from the unpacked archive (``folder``) and repeats the preprocessing of "Masked autoregressive
flow for density estimation", https://arxiv.org/abs/1705.07057, noise and splits included. Nothing is centred or scaled
beyond that, so log-likelihoods can stand beside published ones. Those of Gresele et al. 2020,
https://arxiv.org/abs/2006.15090, in nats a held-out row: POWER 0.065, GAS 6.978, HEPMASS -21.958, MINIBOONE -13.372,
BSDS300 151.12, MNIST -1375.2; their code reads the five tables with the 2017 paper's own.

GAS and MNIST are pickles. Of what a pickle may name, only the parts of tables and arrays are taken: no code in it runs.

Every loader raises FileNotFoundError for a file that is missing, ValueError for one that is damaged, for too few
train rows and for a model of another dim. ``rows`` counts train rows, in an order drawn with ``seed``; None for all.
"""

from __future__ import annotations

import gzip
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stepscale.bench.data.dataset import Dataset

ARCHIVE = "https://doi.org/10.5281/zenodo.1161203"
DIMS = {"POWER": 6, "GAS": 8, "HEPMASS": 21, "MINIBOONE": 43, "BSDS300": 63, "MNIST": 784}
CORRELATED = 0.98  # GAS
REPEATS = 5  # HEPMASS
SQUEEZE = 1e-6  # MNIST's lambda
NEEDED = {  # by a pickled table or array: names, wherever in its package a version has them
    "builtins": {"object", "slice"},
    "copyreg": {"_reconstructor"},
    "_codecs": {"encode"},
    "numpy": {"_frombuffer", "_reconstruct", "dtype", "ndarray"},
    "pandas": {
        "BlockManager", "DataFrame", "Float64Index", "Index", "Int64Index", "RangeIndex", "StringArray", "StringDtype",
        "__pyx_unpickle_NDArrayBacked", "_new_Index", "_unpickle_block",
    },
}  # fmt: skip
PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def power(folder: str, dim: int, rows: int | None, seed: int) -> Dataset:
    """Return POWER, dim 6: shuffled, columns 1 and 3 of 8 dropped, noise of a measured unit added, normalised."""
    _check_dim("POWER", dim)
    rng = np.random.RandomState(42)
    with _reading(folder, "power/data.npy") as path:
        x = _array(path)
        rng.shuffle(x)
        x = np.delete(x, [1, 3], axis=1)
        # in the order in which they were drawn: voltage, active power, three meters; the last column, time, has none
        voltage, active, meters = rng.rand(len(x), 1), rng.rand(len(x), 1), rng.rand(len(x), 3)
        x = x + np.hstack([0.001 * active, 0.01 * voltage, meters, np.zeros((len(x), 1))])
        parts = _tenths(x)
        parts = _normalised(parts, by=np.concatenate(parts[:2]))
    return _dataset("POWER", parts, rows, seed)


def gas(folder: str, dim: int, rows: int | None, seed: int) -> Dataset:
    """Return GAS, dim 8: sensors, but not the first of any two correlated beyond 0.98, normalised by all rows."""
    _check_dim("GAS", dim)
    with _reading(folder, "gas/ethylene_CO.pickle") as path:
        table = _unpickled(path).drop(columns=["Time", "Meth", "Eth"])
        # published as a loop that drops the first column with such a partner: each that has one to its right
        redundant = np.triu(table.corr().to_numpy() > CORRELATED, 1).any(axis=1)
        x = table.to_numpy(dtype=np.float64)[:, ~redundant]
        parts = _normalised(_tenths(x), by=x, ddof=1)
    return _dataset("GAS", parts, rows, seed)


def hepmass(folder: str, dim: int, rows: int | None, seed: int) -> Dataset:
    """Return HEPMASS, dim 21: signal only, normalised by the train file, features of repeated values dropped.

    As published, a feature goes if its smallest value occurs more than 5 times; validation is the train file's last
    tenth.
    """
    _check_dim("HEPMASS", dim)
    with _reading(folder, "hepmass/1000_train.csv") as path:
        table = _signal(path)
    with _reading(folder, "hepmass/1000_test.csv") as path:
        test = _signal(path)[table.columns].to_numpy(dtype=np.float64)  # this file has one column more
        seen = table.to_numpy(dtype=np.float64)
        seen, held_out = _normalised([seen, test], by=seen, ddof=1)
        kept = (seen == seen.min(axis=0)).sum(axis=0) <= REPEATS
        train, validation = np.split(seen[:, kept], [len(seen) - len(seen) // 10])
    return _dataset("HEPMASS", [train, validation, held_out[:, kept]], rows, seed)


def miniboone(folder: str, dim: int, rows: int | None, seed: int) -> Dataset:
    """Return MINIBOONE, dim 43: the archive's columns, normalised."""
    _check_dim("MINIBOONE", dim)
    with _reading(folder, "miniboone/data.npy") as path:
        parts = _tenths(_array(path))
        parts = _normalised(parts, by=np.concatenate(parts[:2]))
    return _dataset("MINIBOONE", parts, rows, seed)


def bsds300(folder: str, dim: int, rows: int | None, seed: int) -> Dataset:
    """Return BSDS300, dim 63: 8x8 patches less their mean and their last pixel, as they stand in the file.

    Raises:
        ImportError: h5py is not installed.
    """
    _check_dim("BSDS300", dim)
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError('BSDS300 is read with h5py: pip install "stepscale[datasets]"') from error
    with _reading(folder, "BSDS300/BSDS300.hdf5") as path, h5py.File(path, "r") as file:
        parts = [file[split][:] for split in ("train", "validation", "test")]
    return _dataset("BSDS300", parts, rows, seed)


def mnist(folder: str, dim: int, rows: int | None, seed: int) -> Dataset:
    """Return MNIST, dim 784: logit(λ + (1 - 2λ) x) of pixels x in [0, 1), dequantised; λ = 1e-6.

    Published log-likelihoods are of the density of these logit values, not of the pixels. The relative gradient's
    authors draw their noise without a seed and divide by the largest pixel, which differs by less than 1e-6.
    """
    _check_dim("MNIST", dim)
    rng = np.random.RandomState(42)
    with _reading(folder, "mnist/mnist.pkl.gz") as path:
        pixels = [np.asarray(images) for images, _ in _unpickled(path)]
        if not all((x.min() >= 0) & (x.max() <= 255 / 256) for x in pixels):
            raise ValueError("expected pixels of 0/256 … 255/256")
        parts = [_logit(SQUEEZE + (1 - 2 * SQUEEZE) * (x + rng.rand(*x.shape) / 256)) for x in pixels]
    return _dataset("MNIST", parts, rows, seed)._replace(shape=(28, 28))


def _check_dim(name: str, dim: int) -> None:
    if dim != DIMS[name]:
        raise ValueError(f"{name} has dim {DIMS[name]}, the model has dim {dim}; set dim={DIMS[name]}")


@contextmanager
def _reading(folder: str, file: str) -> Iterator[Path]:
    """Give the path of one of the archive's files; whatever fails with it becomes a ValueError that names it."""
    path = Path(folder) / file
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; unpack the archive from {ARCHIVE} and set data.folder")
    try:
        yield path
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} cannot be read: {error!r}") from error


def _array(path: Path) -> np.ndarray:
    return np.array(np.lib.format.open_memmap(path, mode="r"))  # which reads no Python objects


def _tenths(rows: np.ndarray) -> list[np.ndarray]:
    """Hold out the last tenth of the rows, validate with the last tenth of those before it, train on the rest."""
    seen = len(rows) - len(rows) // 10
    return np.split(rows, [seen - seen // 10, seen])


def _normalised(parts: Sequence[np.ndarray], *, by: np.ndarray, ddof: int = 0) -> list[np.ndarray]:
    """Subtract the means of ``by`` and divide by its standard deviations, column by column."""
    mean, deviation = by.mean(axis=0), by.std(axis=0, ddof=ddof)
    useless = np.flatnonzero(~(deviation > 0))
    if len(useless):
        raise ValueError(f"column {useless[0]} has standard deviation {deviation[useless[0]]}")
    return [(part - mean) / deviation for part in parts]


def _signal(path: Path) -> pd.DataFrame:
    """Return the rows of class 1, without the class, which is the first column."""
    table = pd.read_csv(path, index_col=False)
    return table[table.iloc[:, 0] == 1].iloc[:, 1:]


def _logit(x: np.ndarray) -> np.ndarray:
    return (np.log(x) - np.log1p(-x)).astype(np.float32)  # now: three copies of MNIST in float64 are a gigabyte


def _dataset(name: str, parts: Sequence[np.ndarray], rows: int | None, seed: int) -> Dataset:
    """Check the three splits and draw the train rows."""
    for part in parts:
        if part.ndim != 2 or part.shape[1] != DIMS[name] or not len(part) or not np.isfinite(part).all():
            raise ValueError(
                f"{name} gives an array of shape {part.shape}; expected finite [rows, {DIMS[name]}]:"
                f" is its file that of {ARCHIVE}?"
            )
    train, validation, held_out = (torch.from_numpy(part.astype(np.float32)) for part in parts)
    if rows is not None and len(train) < rows:
        raise ValueError(f"{name} has {len(train)} train rows; {rows} are needed: lower batch")
    order = np.random.default_rng(seed).permutation(len(train))[:rows]
    return Dataset(train[torch.from_numpy(order)], validation, held_out, f"{name} of Papamakarios et al. 2017")


class _Unpickler(pickle.Unpickler):
    """Knows what a table or an array needs, and where an old pandas and Python 2 had it; runs nothing else."""

    def find_class(self, module: str, name: str) -> object:
        package = module.split(".")[0]
        if name not in NEEDED.get(PYTHON_3.get(package, package), ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no table of numbers needs; nothing was run")
        if name in {"Int64Index", "Float64Index"}:
            return pd.Index
        place = "pandas.core.indexes.base" if module == "pandas.core.index" else module
        return super().find_class(place.replace("pandas.indexes.", "pandas.core.indexes."), name)


def _unpickled(path: Path) -> Any:
    """Read a pickle, of Python 2 too, for which the archive was made.

    Raises:
        pickle.UnpicklingError: it names something else than ``NEEDED``.
    """
    with warnings.catch_warnings(), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, of the names it had then
        return _Unpickler(file, encoding="latin1").load()
