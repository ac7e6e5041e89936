"""The published preprocessing, on small files of the archive's layout and against slow twins of it."""

import base64
import gzip
import pickle
import shutil
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from stepscale.bench.data import density_benchmarks
from stepscale.bench.data.dataset import Dataset
from tests.support.compose import built, composed

pytestmark = pytest.mark.numerical

FILES = {
    "power": "power/data.npy",
    "gas": "gas/ethylene_CO.pickle",
    "hepmass": "hepmass/1000_test.csv",
    "miniboone": "miniboone/data.npy",
    "bsds300": "BSDS300/BSDS300.hdf5",
    "mnist": "mnist/mnist.pkl.gz",
}
DIMS = {name: density_benchmarks.DIMS[name.upper()] for name in FILES}

# the archive's tables are older than strings of Arrow, which pandas takes where pyarrow is there
WITHOUT_ARROW = partial(pd.option_context, "mode.string_storage", "python")
# pd.DataFrame([[1.5, -2.5], [1e300, 0.1]], [7, 3], ["Time", "R1"]), pickled by pandas 0.19 in Python 2.7, deflated
PYTHON_2 = (
    "eNp1Ustu00AUjR03baaFplDKGwIUcHmYRqqARaVKCCGBRZAiZmmNxs60Y2E7ufYMEAkjWLSUTwDxI+z4GD6CHVw/IhQes/BY9x6fe865fmcGY54M"
    "eeYEo1Q4uymPBXnIFX9UvoGx8R7MHJo2bbNYKD7EFlgezFGLqckYWrRdlMrvYJ7OsRKwMEMaJkqkCY8y8iAaBS+e8oTviZRAG7mJ7cGiPYWHyVC8"
    "Fpnj80wQlohX7HFRIbD0T0TdPJLDUZta5eTlINHxeFINjnWkQp6mfEJYKoJRkqlUB4pAp0IRpCy7sOI29qnhfxjAMds1XHO/BgzRI6ZwnJrP7rsN"
    "10DAqu02qfGm3+8/+YmnfLg7yv/owQlU8TzEINaoOejBSaF8aiVFMqf6+mAAp+VfPnCMSMMArai7W7WfMzmcteWy7Mjfss5VsiQqCadKzpdKtmeV"
    "NFAJ7cw3qtOsb+XLSsIF4cHFGeZuyeyaBwX37pT70n+4D2m3YvyxU93Wty+6cbj9/d7bz5+K8xWj4B5clksS93LlTx/rtY9VjOuqLddkEVKt7RrP"
    "4TptbTq9LacHdg4bmCfHlOCGXKQtv/h5Mrjpwa0cbtt0Id5LGdYycALGfB3ishPGSBaFAe7sDjoxSy+btPWSRxp5erKruc6Ur33nF6TC/Og="
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of the archive's layout: of every one the published columns, and a few rows."""
    folder, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    for file in FILES.values():
        (folder / file).parent.mkdir()
    np.save(folder / FILES["power"], rng.normal(3, 2, size=(300, 8)))
    np.save(folder / FILES["miniboone"], rng.normal(3, 2, size=(300, 43)))
    with WITHOUT_ARROW():
        sensors(rng).to_pickle(folder / FILES["gas"])
    collisions(rng, 600, 28).to_csv(folder / "hepmass/1000_train.csv", index=False)
    collisions(rng, 200, 29).to_csv(folder / "hepmass/1000_test.csv", index=False)
    with h5py.File(folder / FILES["bsds300"], "w") as file:
        for split, rows in (("train", 50), ("validation", 10), ("test", 20)):
            file[split] = rng.normal(size=(rows, 63))
    digits = [((rng.integers(256, size=(rows, 784)) / 256).astype(np.float32), np.zeros(rows)) for rows in (50, 10, 20)]
    write_digits(folder, digits)
    return folder


@pytest.fixture
def folder(archive: Path, tmp_path: Path) -> Path:
    """The same, to spoil."""
    return Path(shutil.copytree(archive, tmp_path, dirs_exist_ok=True))


def write_digits(folder: Path, digits: object) -> None:
    with gzip.open(folder / FILES["mnist"], "wb", compresslevel=1) as file:
        pickle.dump(digits, file)


def sensors(rng: np.random.Generator) -> pd.DataFrame:
    """Sixteen sensors: two groups of three, whose ends are below the limit of correlation, and pairs on either side."""
    drift = np.cumsum(rng.normal(size=(3, 300, 2)) * np.array([1, 0.15, 0.15])[:, None, None], axis=0)
    pairs = [*(pair(rng, 0.981) for _ in range(4)), pair(rng, 0.979)]
    columns = [*drift[0].T, *(one for one, _ in pairs), *drift[1].T, *(other for _, other in pairs), *drift[2].T]
    names = ["Time", "Meth", "Eth", *(f"R{k}" for k in range(16))]
    return pd.DataFrame(np.stack([*rng.normal(size=(3, 300)), *columns], axis=1), columns=names)


def pair(rng: np.random.Generator, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(300, 2))
    one, other = np.linalg.qr(x - x.mean(axis=0))[0].T
    return one, correlation * one + np.sqrt(1 - correlation**2) * other


def collisions(rng: np.random.Generator, rows: int, columns: int) -> pd.DataFrame:
    """A class and features, of which six repeat their smallest value and one its largest, which is no reason to go."""
    x = rng.normal(5, 3, size=(rows, columns))
    x[:, 0] = rng.integers(2, size=rows)
    x[:, 2:14:2] = rng.integers(3, size=(rows, 6))
    x[:, 20] = np.minimum(x[:, 20], 6)
    return pd.DataFrame(x, columns=["# label", *(f"f{k}" for k in range(columns - 1))])


def load(name: str, folder: Path, rows: int | None = None, seed: int = 0) -> Dataset:
    return getattr(density_benchmarks, name)(str(folder), dim=DIMS[name], rows=rows, seed=seed)


def ordered(rows: Tensor | np.ndarray) -> np.ndarray:
    """Rows by their first value: train rows come in the order of the seed."""
    rows = np.asarray(rows, dtype=np.float64)
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("name", FILES)
def test_its_configuration_loads_three_disjoint_splits(name: str, archive: Path) -> None:
    config = composed(f"data={name}", f"data.folder={archive}")
    data = built(config["data"])(dim=DIMS[name], rows=None, seed=0)
    parts = (data.train, data.validation, data.held_out)
    assert all(part.dtype == torch.float32 and part.shape[1] == DIMS[name] for part in parts)
    rows = torch.cat(parts)
    assert len(rows.unique(dim=0)) == len(rows)
    assert data.shape == ((28, 28) if name == "mnist" else None)
    assert name.upper() in data.note


@pytest.mark.parametrize("name", FILES)
def test_train_rows_are_drawn_by_the_seed_and_the_others_are_not(name: str, archive: Path) -> None:
    everything, some, other = load(name, archive), load(name, archive, rows=20), load(name, archive, rows=20, seed=1)
    assert torch.equal(some.train, everything.train[:20])
    assert not torch.equal(some.train, other.train)
    assert torch.equal(some.held_out, other.held_out)
    assert torch.equal(some.validation, everything.validation)


@pytest.mark.parametrize("name", ["power", "gas", "miniboone"])
def test_tenths(name: str, archive: Path) -> None:
    assert [len(part) for part in load(name, archive)[:3]] == [243, 27, 30]


@pytest.mark.parametrize(
    ("rows", "sizes"),  # of POWER, GAS and MINIBOONE: table 4 of Papamakarios et al. 2017
    [
        (2_049_280, [1_659_917, 184_435, 204_928]),
        (1_052_065, [852_174, 94_685, 105_206]),
        (36_488, [29_556, 3_284, 3_648]),
    ],
)
def test_tenths_are_the_published_ones(rows: int, sizes: list[int]) -> None:
    assert [len(part) for part in density_benchmarks._tenths(np.empty((rows, 1)))] == sizes


@pytest.mark.parametrize("name", ["power", "miniboone", "hepmass"])
def test_train_and_validation_rows_together_are_normal(name: str, archive: Path) -> None:
    data = load(name, archive)
    seen = torch.cat([data.train, data.validation]).double()
    assert seen.mean(dim=0).abs().max() < 1e-6
    torch.testing.assert_close(seen.std(dim=0, correction=int(name == "hepmass")), torch.ones(DIMS[name]).double())


def test_power_drops_two_columns_and_gains_noise(archive: Path) -> None:
    raw, rng = np.load(archive / FILES["power"]), np.random.RandomState(42)
    order = np.arange(300)
    rng.shuffle(order)
    active, _, voltage, _, *meters, time = raw[order].T
    voltage = voltage + 0.01 * rng.rand(300)
    active = active + 0.001 * rng.rand(300)
    noise = rng.rand(300, 3).T
    x = np.stack([active, voltage, *(meter + noise[k] for k, meter in enumerate(meters)), time], axis=1)
    x = (x - x[:270].mean(0)) / x[:270].std(0)
    data = load("power", archive)
    np.testing.assert_allclose(data.held_out, x[270:], atol=1e-6)
    np.testing.assert_allclose(data.validation, x[243:270], atol=1e-6)
    np.testing.assert_allclose(ordered(data.train), ordered(x[:243]), atol=1e-6)


def test_gas_drops_what_the_published_loop_drops(archive: Path) -> None:
    table = pd.read_pickle(archive / FILES["gas"]).drop(columns=["Time", "Meth", "Eth"])
    assert table.corr().loc["R0", "R14"] < 0.98 < table.corr().loc["R0", "R7"]  # else the order would not matter
    while (partners := (table.corr() > 0.98).sum(axis=1) > 1).any():
        table = table.drop(columns=partners.idxmax())
    x = ((table - table.mean()) / table.std()).to_numpy()
    data = load("gas", archive)
    np.testing.assert_allclose(data.held_out, x[270:], atol=1e-6)
    np.testing.assert_allclose(data.validation, x[243:270], atol=1e-6)
    np.testing.assert_allclose(ordered(data.train), ordered(x[:243]), atol=1e-6)


def test_hepmass_is_signal_without_the_features_whose_smallest_value_repeats(archive: Path) -> None:
    train, test = (pd.read_csv(archive / f"hepmass/1000_{split}.csv") for split in ("train", "test"))
    train, test = (table[table["# label"] == 1] for table in (train, test))
    kept = [f"f{k}" for k in range(27) if train[f"f{k}"].value_counts()[train[f"f{k}"].min()] <= 5]
    assert "f19" in kept and train["f19"].value_counts().max() > 5
    expected = (test[kept] - train[kept].mean()) / train[kept].std()
    data = load("hepmass", archive)
    np.testing.assert_allclose(data.held_out, expected, atol=1e-6)
    assert len(data.validation) == len(train) // 10
    assert len(data.train) == len(train) - len(train) // 10
    last = ((train[kept] - train[kept].mean()) / train[kept].std()).iloc[-1]
    np.testing.assert_allclose(data.validation[-1], last, atol=1e-6)


def test_bsds300_is_as_it_stands_in_the_file(archive: Path) -> None:
    data = load("bsds300", archive)
    with h5py.File(archive / FILES["bsds300"]) as file:
        np.testing.assert_allclose(data.validation, file["validation"][:], atol=1e-6)
        np.testing.assert_allclose(data.held_out, file["test"][:], atol=1e-6)
        np.testing.assert_allclose(ordered(data.train), ordered(file["train"][:]), atol=1e-6)


def test_mnist_undone_gives_its_pixels(archive: Path) -> None:
    with gzip.open(archive / FILES["mnist"]) as file:
        _, (validation, _), (test, _) = pickle.load(file)
    data = load("mnist", archive)
    for found, pixels in ((data.validation, validation), (data.held_out, test)):
        x = (torch.sigmoid(found.double()) - 1e-6) / (1 - 2e-6)
        above = (256 * x).numpy() - 256 * pixels  # what dequantising added, in [0, 1)
        assert -1e-4 < above.min() < 0.01 and 0.99 < above.max() < 1 + 1e-4


def test_mnist_draws_its_noise_split_after_split(archive: Path) -> None:
    noise = np.random.RandomState(42).rand(80, 784)
    with gzip.open(archive / FILES["mnist"]) as file:
        pixels = np.concatenate([images for images, _ in pickle.load(file)])
    x = 1e-6 + (1 - 2e-6) * (pixels + noise / 256)
    expected = np.log(x / (1 - x))
    data = load("mnist", archive)
    np.testing.assert_allclose(data.held_out, expected[60:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ordered(data.train), ordered(expected[:50]), rtol=1e-5, atol=1e-6)


def test_mnist_in_other_units_is_refused(folder: Path) -> None:
    digits = [(np.full((2, 784), 1.0), np.zeros(2))] * 3
    write_digits(folder, digits)
    with pytest.raises(ValueError, match="expected pixels of 0/256 … 255/256"):
        load("mnist", folder)


def test_a_pickle_of_python_2_and_an_old_pandas_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pickle"
    path.write_bytes(zlib.decompress(base64.b64decode(PYTHON_2)))
    expected = pd.DataFrame([[1.5, -2.5], [1e300, 0.1]], [7, 3], ["Time", "R1"])
    pd.testing.assert_frame_equal(density_benchmarks._unpickled(path), expected, check_column_type=False)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tables_and_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    with WITHOUT_ARROW():
        table = pd.DataFrame({"Time": [1.5, 2.5], "R1": [3, 4]}, index=[7, 3])
    path = tmp_path / "new.pickle"
    path.write_bytes(pickle.dumps([table, table.to_numpy().astype(np.float32)], protocol))
    found, array = density_benchmarks._unpickled(path)
    pd.testing.assert_frame_equal(found, table)
    assert array.tolist() == table.to_numpy().tolist()


class Marks:
    """Leaves a file where code of a pickle runs."""

    def __init__(self, path: Path, call: Any) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.call, (f"open({str(self.path)!r}, 'w').close()",)


def scores(text: str) -> None:
    """What a pickle may name of a package that is installed: here this module."""
    exec(text)


@pytest.mark.parametrize("call", [exec, eval, pd.eval, scores])
@pytest.mark.parametrize("name", ["gas", "mnist", "power", "miniboone"])
def test_no_code_in_a_data_file_runs(name: str, call: Any, folder: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", folder / FILES[name]
    evil = pickle.dumps([pd.DataFrame({"a": [1.0]}), Marks(marker, call)])
    path.write_bytes(gzip.compress(evil) if path.suffix == ".gz" else evil)
    with pytest.raises(ValueError, match=rf"{FILES[name]} cannot be read") as caught:
        load(name, folder)
    assert not marker.exists() and "unsafe" not in str(caught.value)
    if path.suffix == ".npy":
        np.save(path, np.array([Marks(marker, call)], dtype=object))
        with pytest.raises(ValueError, match=rf"{FILES[name]} cannot be read"):
            load(name, folder)
        assert not marker.exists()
    else:
        assert "which no table of numbers needs; nothing was run" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_another_dim_is_told_so_before_anything_is_read(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name.upper()} has dim {DIMS[name]}, the model has dim 256; set dim="):
        getattr(density_benchmarks, name)("nowhere", dim=256, rows=None, seed=0)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_where_to_get_it(name: str, folder: Path) -> None:
    (folder / FILES[name]).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{FILES[name]}; unpack .*10\.5281/zenodo\.1161203 and set data\.folder"
    ):
        load(name, folder)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name: str, folder: Path) -> None:
    path = folder / FILES[name]
    whole = path.read_bytes()
    for content in (b"", b"no such thing\n", whole[: len(whole) // 2] if name != "hepmass" else b"# label,f0\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{FILES[name]} cannot be read"):
            load(name, folder)


def test_too_few_rows_are_refused(archive: Path) -> None:
    with pytest.raises(ValueError, match="POWER has 243 train rows; 244 are needed: lower batch"):
        load("power", archive, rows=244)


def test_other_arrays_than_the_published_are_refused(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 44))
    np.save(folder / FILES["miniboone"], rows)
    with pytest.raises(ValueError, match=r"MINIBOONE gives .* \(243, 44\); expected finite \[rows, 43\]: is its file"):
        load("miniboone", folder)
    for value in (0, np.nan):
        rows[:, 3] = value
        np.save(folder / FILES["miniboone"], rows[:, :43])
        with pytest.raises(ValueError, match=r"column 3 has standard deviation (0\.0|nan)"):
            load("miniboone", folder)
    rows[:270, 3], rows[270:, 3] = np.arange(270), np.inf  # only among the held-out rows
    np.save(folder / FILES["miniboone"], rows[:, :43])
    with pytest.raises(ValueError, match=r"shape \(30, 43\); expected finite"):
        load("miniboone", folder)


def test_without_h5py_bsds300_says_what_to_install(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "stepscale\[datasets\]"'):
        load("bsds300", archive)
