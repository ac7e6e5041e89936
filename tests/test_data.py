from pathlib import Path

import numpy as np
import pytest
import torch

from stepscale.bench import data


@pytest.mark.parametrize("dim", [1, 7, 16, 60, 64, 96, 127, 768, 1022, 4096])
def test_photos_have_the_dim_asked_for(dim: int) -> None:
    found = data.photos(dim=dim, rows=30, seed=0)
    for part in (found.train, found.held_out):
        assert part.shape == (30, dim)
        assert part.dtype == torch.float32
        assert torch.isfinite(part).all()


def test_photos_are_centred_and_scaled_by_the_train_rows() -> None:
    train = data.photos(dim=64, rows=2000, seed=0).train.double()
    assert train.mean(0).abs().max() < 1e-6
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_photos_are_photographs_not_noise() -> None:
    patches = data.photos(dim=64, rows=2000, seed=0).train.reshape(-1, 8, 8)
    neighbours = (patches[:, :, 1:] * patches[:, :, :-1]).mean()
    assert neighbours > 0.8


def test_held_out_patches_share_no_pixel_with_train(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.tile(np.arange(640.0), (427, 1))  # a photograph whose pixels say where they lie
    monkeypatch.setattr(data, "_grey", lambda name: columns)
    monkeypatch.setattr(data, "standardised", lambda train, held_out, note: (train * 256, held_out * 256))
    train, held_out = data.photos(dim=1024, rows=500, seed=0)
    assert train.max() < 480
    assert held_out.min() >= 480


def test_photos_do_not_depend_on_anything_but_the_seed() -> None:
    one, same, other = (data.photos(dim=16, rows=10, seed=seed).train for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_above_its_limit_photos_says_that_it_is_noise() -> None:
    assert "Laplace noise" in data.photos(dim=4097, rows=4, seed=0).note


@pytest.mark.parametrize(
    ("dim", "shape"),
    [(64, (8, 8)), (96, (8, 12)), (768, (24, 32)), (127, (12, 12)), (1, (1, 1)), (2, (1, 2)), (22, (5, 5))],
)
def test_patches_are_the_squarest(dim: int, shape: tuple[int, int]) -> None:
    assert data.patch_shape(dim) == shape
    assert shape[0] * shape[1] >= dim


def test_unmixed_sources_are_laplace_and_mixed_ones_are_not_independent() -> None:
    noise = data.mixture(dim=8, rows=20_000, seed=0, depth=0).train.double()
    kurtosis = (noise**4).mean() / (noise**2).mean() ** 2
    assert kurtosis.item() == pytest.approx(6, abs=0.4)
    assert (torch.corrcoef(noise.T) - torch.eye(8)).abs().max() < 0.05
    mixed = data.mixture(dim=8, rows=20_000, seed=0, depth=2).train.double()
    assert (torch.corrcoef(mixed.T) - torch.eye(8)).abs().max() > 0.2


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "headed.csv"])
def test_the_users_file(tmp_path: Path, suffix: str) -> None:
    rows = np.random.default_rng(0).normal(5, 3, size=(40, 6))
    path = tmp_path / f"mine.{suffix}"
    if suffix == "npy":
        np.save(path, rows)
    elif suffix == "npz":
        np.savez(path, x=rows)
    else:
        np.savetxt(path, rows, delimiter=",", header=",".join("abcdef") if "headed" in suffix else "", comments="")
    found = data.file(str(path), dim=6, rows=30, seed=0)
    assert found.train.shape == (30, 6)
    assert found.held_out.shape == (10, 6)
    # a change of order, of mean and of scale, and nothing else
    flat, train = rows[:30], found.train.double().numpy()
    scale = (flat - flat.mean(0)).std()
    np.testing.assert_allclose(np.sort(train[:, 0]), np.sort((flat - flat.mean(0))[:, 0] / scale), atol=1e-6)


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \(5,\); expected \[rows, dim\]"),
        (np.ones((40, 5)), "rows of dim 5, the model has dim 6; set dim=5"),
        (np.where(np.arange(240).reshape(40, 6) == 13, np.nan, 1.0), "1 rows with NaN or infinity, the first is row 2"),
        (np.ones((20, 6)), "20 rows, of which 15 are for training; 30 are needed"),
        (np.full((40, 6), "x"), "expected real numbers"),
        (np.ones((40, 6)), "all the same"),
        (np.ones((40, 6), dtype=complex), "expected real numbers"),
    ],
)
def test_an_unusable_array_is_named_with_what_is_wrong(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        data.file(saved(tmp_path / "mine.npy", array), dim=6, rows=30, seed=0)
    assert "mine.npy" in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy; set data\.path"):
        data.file(str(tmp_path / "nowhere.npy"), dim=6, rows=3, seed=0)
    (tmp_path / "mine.txt").write_text("1 2")
    with pytest.raises(ValueError, match=r"ends in \.txt; expected \.npy, \.npz or \.csv"):
        data.file(str(tmp_path / "mine.txt"), dim=6, rows=3, seed=0)
    (tmp_path / "mine.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"mine\.npy cannot be read"):
        data.file(str(tmp_path / "mine.npy"), dim=6, rows=3, seed=0)
    (tmp_path / "mine.csv").write_text("1,2\n3,four\n")
    with pytest.raises(ValueError, match=r"mine\.csv holds something else than numbers in column"):
        data.file(str(tmp_path / "mine.csv"), dim=2, rows=1, seed=0)
    np.savez(tmp_path / "mine.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(ValueError, match="holds the arrays a, b; expected one"):
        data.file(str(tmp_path / "mine.npz"), dim=2, rows=1, seed=0)
