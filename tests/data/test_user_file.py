"""The user's own file: read as it is meant, and what is wrong with it named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stepscale.bench.data import user_file


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
    found = user_file.load(str(path), dim=6, rows=25, seed=0)
    # a change of order, of mean and of scale, and nothing else
    seen, scale = rows[:25], (rows[:25] - rows[:25].mean(0)).std()
    expected = (rows - seen.mean(0)) / scale
    assert not np.allclose(found.train, expected[:25], atol=1e-6)
    np.testing.assert_allclose(found.train[found.train[:, 0].argsort()], expected[seen[:, 0].argsort()], atol=1e-6)
    np.testing.assert_allclose(found.validation, expected[25:30], atol=1e-6)
    np.testing.assert_allclose(found.held_out, expected[30:], atol=1e-6)


def test_all_train_rows_of_a_file_or_some(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.npy", np.random.default_rng(0).normal(5, 3, size=(40, 6)))
    everything, some = (user_file.load(path, dim=6, rows=rows, seed=0, centre=False) for rows in (None, 4))
    assert [len(part) for part in everything.splits] == [25, 5, 10]
    assert [len(part) for part in some.splits] == [4, 5, 10]
    drawn = some.train * (everything.train[0, 0] / some.train[0, 0])  # each scaled by its own train rows
    torch.testing.assert_close(drawn, everything.train[:4])
    assert everything.train.mean() > 1


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \(5,\); expected \[rows, dim\]"),
        (np.ones((40, 5)), "rows of dim 5, the model has dim 6; set dim=5"),
        (np.where(np.arange(240).reshape(40, 6) == 13, np.nan, 1.0), "1 rows with NaN or infinity, the first is row 2"),
        (np.ones((20, 6)), "20 rows, of which 12 are for training; 20 are needed"),
        (np.full((40, 6), "x"), "expected real numbers"),
        (np.ones((40, 6)), "all the same"),
        (np.ones((40, 6), dtype=complex), "expected real numbers"),
    ],
)
def test_an_unusable_array_is_named_with_what_is_wrong(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        user_file.load(saved(tmp_path / "mine.npy", array), dim=6, rows=20, seed=0)
    assert "mine.npy" in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy; set data\.path"):
        user_file.load(str(tmp_path / "nowhere.npy"), dim=6, rows=3, seed=0)
    (tmp_path / "mine.txt").write_text("1 2")
    with pytest.raises(ValueError, match=r"ends in \.txt; expected \.npy, \.npz or \.csv"):
        user_file.load(str(tmp_path / "mine.txt"), dim=6, rows=3, seed=0)
    (tmp_path / "mine.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"mine\.npy cannot be read"):
        user_file.load(str(tmp_path / "mine.npy"), dim=6, rows=3, seed=0)
    (tmp_path / "mine.csv").write_text("1,2\n3,four\n")
    with pytest.raises(ValueError, match=r"mine\.csv holds something else than numbers in column"):
        user_file.load(str(tmp_path / "mine.csv"), dim=2, rows=1, seed=0)
    np.savez(tmp_path / "mine.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(ValueError, match="holds the arrays a, b; expected one"):
        user_file.load(str(tmp_path / "mine.npz"), dim=2, rows=1, seed=0)
