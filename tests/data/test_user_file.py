"""The user's own file: read as it is meant, and what is wrong with it named."""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stepscale.bench.data import user_file
from stepscale.bench.data.dataset import Dataset, moments

ROWS = np.random.default_rng(0).normal(5, 3, size=(40, 6))
FRAME = pd.DataFrame(ROWS)


def saved(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def load(path: object, dim: int = 6, rows: int | None = None, **settings: Any) -> Dataset:
    return user_file.load(str(path), dim=dim, rows=rows, seed=0, **settings)


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "headed.csv"])
def test_the_users_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    if suffix == "npy":
        np.save(path, ROWS)
    elif suffix == "npz":
        np.savez(path, x=ROWS)
    else:
        np.savetxt(path, ROWS, delimiter=",", header=",".join("abcdef") if "headed" in suffix else "", comments="")
    found = load(path, rows=25, shuffle=False)
    # a change of order, of mean and of scale, and nothing else
    seen, scale = ROWS[:25], (ROWS[:25] - ROWS[:25].mean(0)).std()
    expected = (ROWS - seen.mean(0)) / scale
    assert not np.allclose(found.train, expected[:25], atol=1e-6)
    np.testing.assert_allclose(found.train[found.train[:, 0].argsort()], expected[seen[:, 0].argsort()], atol=1e-6)
    np.testing.assert_allclose(found.validation, expected[25:30], atol=1e-6)
    np.testing.assert_allclose(found.held_out, expected[30:], atol=1e-6)
    assert found.note == str(path)
    assert found.rescaling is not None and found.rescaling.scale == pytest.approx(scale, rel=1e-12)
    np.testing.assert_allclose(found.rescaling.shift, seen.mean(0), rtol=1e-12)


def test_all_train_rows_of_a_file_or_some(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.npy", ROWS)
    everything, some = (load(path, rows=rows, centre=False) for rows in (None, 4))
    assert [len(part) for part in everything.splits] == [25, 5, 10]
    assert [len(part) for part in some.splits] == [4, 5, 10]
    drawn = some.train * (everything.train[0, 0] / some.train[0, 0])  # each scaled by its own train rows
    torch.testing.assert_close(drawn, everything.train[:4])
    assert everything.train.mean() > 1


TYPES = ["float16", "float32", "float64", ">f4", ">f8", "longdouble", "int8", "uint8", ">i4", "int64", "bool"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_are_standardised_in_float64_whatever_their_type(tmp_path: Path, dtype: str, order: Any) -> None:
    values = np.random.default_rng(1).normal(64, 20, size=(400, 3))
    array = np.asarray(values > 64 if dtype == "bool" else values.clip(1, 126).astype(dtype), order=order)
    path = saved(tmp_path / "mine.npy", array)
    found, seen = load(path, dim=3, shuffle=False), array[:250].astype(np.float64)
    expected = (array.astype(np.float64) - seen.mean(0)) / (seen - seen.mean(0)).std()
    np.testing.assert_allclose(found.held_out, expected[300:], atol=1e-6)
    assert found.train.double().mean(0).abs().max() < 1e-6
    assert found.train.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "offset", "sd"),
    [
        ("float32", 300, 1),  # a temperature in kelvin, whose mean in float32 is over 1 deviation away
        ("float32", 1e6, 1),
        ("float16", 0, 300),  # whose squares float16 cannot hold
        ("float32", 0, 1e20),
        ("float32", 0, 1e-25),
        ("float64", 0, 1e200),
        ("float64", 0, 1e-200),
    ],
)
def test_no_mean_and_no_deviation_is_lost_to_rounding(tmp_path: Path, dtype: str, offset: float, sd: float) -> None:
    array = (offset + sd * np.random.default_rng(0).normal(size=(200_000, 2))).astype(dtype)
    train = load(saved(tmp_path / "mine.npy", array), dim=2).train.double()
    assert train.mean(0).abs().max() < 1e-6
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_moments_of_each_column_are_exact_and_a_constant_one_has_none() -> None:
    columns = [np.full(1000, 0.1), np.linspace(0, 1e-3, 1000) + 1e9, np.linspace(-1, 1, 1000) * 1e250]
    mean, deviation = moments(np.stack(columns, axis=1))
    assert deviation[0] == 0 and mean[0] == pytest.approx(0.1, rel=1e-15)
    assert mean.tolist() == pytest.approx([math.fsum(column) / 1000 for column in columns], rel=1e-15, abs=1e234)
    for k, scale in ((1, 1.0), (2, 1e250)):
        about = [(value - math.fsum(columns[k] / scale) / 1000) ** 2 for value in columns[k] / scale]
        assert deviation[k] / scale == pytest.approx(math.sqrt(math.fsum(about) / 1000), rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_split_is_of_mixed_rows_and_the_same_for_every_seed(tmp_path: Path, sign: int) -> None:
    array = np.sort(ROWS, axis=0)[::sign]
    path = saved(tmp_path / "sorted.npy", array)
    one, other = (user_file.load(path, dim=6, rows=None, seed=seed, raw=True) for seed in (0, 1))
    assert torch.equal(one.held_out, other.held_out) and torch.equal(one.validation, other.validation)
    assert not torch.equal(one.train, other.train)
    np.testing.assert_array_equal(np.sort(torch.cat(one.splits), axis=0), np.sort(array.astype(np.float32), axis=0))
    assert abs(float(one.held_out.mean() - one.train.mean())) < 1
    kept = load(path, raw=True, shuffle=False)
    np.testing.assert_array_equal(kept.held_out, array[30:].astype(np.float32))


@pytest.mark.parametrize("count", range(3, 20))
def test_a_small_file_has_a_row_of_each_kind(tmp_path: Path, count: int) -> None:
    found = load(saved(tmp_path / "mine.npy", ROWS[:count]), raw=True)
    sizes = [len(part) for part in found.splits]
    assert min(sizes) >= 1 and sum(sizes) == count


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("index", [False, True])
def test_what_pandas_writes_is_read_without_its_header_and_its_index(tmp_path: Path, header: bool, index: bool) -> None:
    FRAME.to_csv(tmp_path / "mine.csv", header=header, index=index)
    found = load(tmp_path / "mine.csv", raw=True, shuffle=False)
    assert len(torch.cat(found.splits)) == 40
    np.testing.assert_allclose(found.held_out, ROWS[30:], rtol=1e-6)
    assert ("0, 1, 2, …, is taken for a header" in found.note) == header
    assert ("left out as an index" in found.note) == index


def test_the_index_of_some_mixed_rows_and_row_names_are_left_out(tmp_path: Path) -> None:
    mixed = FRAME[FRAME[0] > 2].sample(frac=1, random_state=0)
    mixed.to_csv(tmp_path / "mine.csv")
    found = load(tmp_path / "mine.csv", raw=True, shuffle=False)
    np.testing.assert_allclose(found.held_out[-1], mixed.iloc[-1], rtol=1e-6)
    lines = FRAME.to_csv(header=False).splitlines()
    (tmp_path / "r.csv").write_text(
        "\n".join(["a,b,c,d,e,f", *(f'"row {line}'.replace(",", '",', 1) for line in lines)])
    )
    found = load(tmp_path / "r.csv", raw=True, shuffle=False)
    np.testing.assert_allclose(found.held_out, ROWS[30:], rtol=1e-6)


def test_no_file_is_answered_by_training_on_its_index(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.npy", np.column_stack([np.arange(1, 41), ROWS]))
    assert "counts the rows from 1 and is left out" in load(path).note
    with pytest.raises(ValueError, match="rows of dim 6, the model has dim 64; set dim=6"):
        load(path, dim=64)
    assert "is it an index" in load(path, dim=7).note


@pytest.mark.parametrize("start", [0, 1])
def test_a_first_line_of_numbers_is_a_header_only_where_it_counts_the_columns(tmp_path: Path, start: int) -> None:
    counted = [f"{start},{start + 1}", *(f"{a},{b}" for a, b in ROWS[:, :2])]
    (tmp_path / "mine.csv").write_text("\n".join(counted))
    assert len(torch.cat(load(tmp_path / "mine.csv", dim=2).splits)) == 40
    one_hot = "0,1\n1,0\n" * 10
    (tmp_path / "mine.csv").write_text(one_hot)
    assert len(torch.cat(load(tmp_path / "mine.csv", dim=2).splits)) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        (FRAME.to_csv(sep=";"), "separated by semicolons; expected commas"),
        (FRAME.to_csv(sep=";", decimal=","), "separated by semicolons; expected commas"),
        (FRAME.to_csv(sep="\t"), "separated by tabs; expected commas"),
        (FRAME.to_csv(sep=" ", header=False, index=False), "separated by blanks; expected commas"),
        (FRAME.to_csv(index=False).replace("\n", ",\n"), "lines end in a comma, after which nothing comes; remove it"),
        (FRAME.to_csv(index=False, header=list("abcdef")).replace("\n", ",\n").replace("f,", "f"), "end in a comma"),
        (FRAME.assign(kind="oak").to_csv(index=False), "in column kind, 'oak' in row 0; .* set data.label=kind for a"),
        (FRAME.assign(kind="oak").to_csv(index=False, header=False), "column 6, 'oak' .* set data.label=last for a"),
        ("1,2\n3,four\n", "holds something else than numbers in column 1, 'four' in row 1"),
        ("a,b\n1,2,3,4\n", "header names 2 columns, the line below has 4"),
        ("1,2\n1,2,3\n", "Expected 2 fields in line 2, saw 3"),
        ("a,b\n", "has no row below its header"),
    ],
)
def test_a_csv_that_is_meant_otherwise_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "mine.csv")
    assert "mine.csv" in str(caught.value)


@pytest.mark.parametrize("names", [["oak", "ash", "elm", "ash"], [3, 1, 7, 1], [-1.0, 1.0, -1.0, 1.0]])
def test_labels_are_numbered_in_their_order(tmp_path: Path, names: list[Any]) -> None:
    labels = names * 10
    expected = [sorted(set(names)).index(name) for name in labels[30:]]
    FRAME.assign(kind=labels).to_csv(tmp_path / "mine.csv", index=False)
    np.savez(tmp_path / "mine.npz", rows=ROWS, kind=labels)
    for file, label in (("mine.csv", "kind"), ("mine.csv", "last"), ("mine.npz", "kind")):
        rows, numbers = load(tmp_path / file, label=label, raw=True, shuffle=False).held_out
        assert numbers.dtype == torch.int64 and numbers.tolist() == expected
        np.testing.assert_allclose(rows, ROWS[30:], rtol=1e-6)
    if isinstance(names[0], int):
        path = saved(tmp_path / "mine.npy", np.column_stack([ROWS, labels]))
        assert load(path, label="last").held_out[1].shape == (10,)
    mixed = load(tmp_path / "mine.csv", label="kind", raw=True)
    places = [int(np.abs(ROWS - np.asarray(row)).sum(1).argmin()) for row in mixed.train[0]]
    assert mixed.train[1].tolist() == [sorted(set(names)).index(labels[place]) for place in places]


def test_wrong_labels_are_named(tmp_path: Path) -> None:
    FRAME.assign(kind=0.5).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match=r"mine\.csv .* label of row 0 is 0\.5; expected whole numbers or words"):
        load(tmp_path / "mine.csv", label="kind")
    with pytest.raises(ValueError, match=r"no column 'species'; set data\.label to last or one of 0, 1, 2, 3, 4, 5, k"):
        load(tmp_path / "mine.csv", label="species")
    np.savez(tmp_path / "mine.npz", rows=ROWS, kind=np.zeros(39))
    with pytest.raises(ValueError, match="40 rows and 39 labels; expected one each"):
        load(tmp_path / "mine.npz", label="kind")
    with pytest.raises(ValueError, match=r"no label 'last'; data\.label is one of its arrays, rows, kind"):
        load(tmp_path / "mine.npz", label="last")


@pytest.mark.parametrize("dtype", ["int64", "uint16", ">i4"])
def test_whole_numbers_are_tokens_where_they_are_asked_for(tmp_path: Path, dtype: str) -> None:
    tokens = np.random.default_rng(0).integers(1000, size=(40, 6)).astype(dtype)
    path = saved(tmp_path / "mine.npy", tokens)
    found = load(path, tokens=True, shuffle=False)
    assert found.held_out.dtype == torch.int64 and found.held_out.tolist() == tokens[30:].tolist()
    assert load(path).held_out.dtype == load(path, raw=True).held_out.dtype == torch.float32
    with pytest.raises(ValueError, match=r"holds float64; data\.tokens=true expects whole numbers"):
        load(saved(tmp_path / "mine.npy", ROWS), tokens=True)


BIG = np.where(np.arange(240).reshape(40, 6) == 13, 1e39, 1.0)


@pytest.mark.parametrize(
    ("array", "settings", "message"),
    [
        (np.zeros(5), {}, r"shape \(5,\); expected \[rows, dim\]"),
        (np.ones((40, 5)), {}, "rows of dim 5, the model has dim 6; set dim=5"),
        (np.where(BIG > 1, np.nan, BIG), {}, "1 rows with NaN or infinity, the first is row 2"),
        (np.ones((20, 6)), {}, "20 rows, of which 12 are for training; 20 are needed"),
        (np.full((40, 6), "x"), {}, "expected real numbers"),
        (np.ones((40, 6)), {}, "all the same"),
        (np.full((40, 6), 0.1), {}, "all the same"),
        (np.ones((40, 6), dtype=complex), {}, "expected real numbers"),
        (BIG, {"raw": True}, r"in row 2 a value above 3\.4e38, which float32 cannot hold; rescale it, or remove that"),
        (np.full((40, 6), 1e-60), {"raw": True}, r"float32 makes them all 0; leave out data\.raw"),
        (np.zeros((0, 6)), {}, "has 0 rows; expected at least 3"),
        (np.ones((1, 6)), {}, "has 1 rows; expected at least 3"),
        (np.ones((3, 6)), {"rows": 1}, "has one train row, which has no standard deviation: add rows"),
        (np.array([[{}] * 6]), {}, "it holds Python objects; save it as an array of numbers"),
    ],
)
def test_an_unusable_array_is_named_with_what_is_wrong(
    tmp_path: Path, array: np.ndarray, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(saved(tmp_path / "mine.npy", array), **{"rows": 20, **settings})
    assert "mine.npy" in str(caught.value)


class Marks:
    """Leaves a file where code of a pickle runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_no_code_in_a_file_runs(tmp_path: Path, suffix: str) -> None:
    path, marker = tmp_path / f"mine.{suffix}", tmp_path / "marker"
    objects = np.array([[Marks(marker)] * 6] * 40, dtype=object)
    for content in ("array", "pickle"):
        if content == "pickle":
            path.write_bytes(pickle.dumps(objects))
        elif suffix == "npy":
            np.save(path, objects)
        else:
            np.savez(path, rows=objects)
        with pytest.raises(ValueError, match=rf"mine\.{suffix} cannot be read") as caught:
            load(path)
        assert not marker.exists() and "unsafe" not in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy; set data\.path"):
        load(tmp_path / "nowhere.npy")
    (tmp_path / "mine.txt").write_text("1 2")
    with pytest.raises(ValueError, match=r"ends in \.txt; expected \.npy, \.npz or \.csv"):
        load(tmp_path / "mine.txt")
    whole = io.BytesIO()
    np.save(whole, ROWS)
    unreadable = [b"", b"no array", whole.getvalue()[:500], whole.getvalue().replace(b"(40, 6)", b"(9**9,)"), b"PK\3\4"]
    for content in unreadable:
        (tmp_path / "mine.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.npy cannot be read") as caught:
            load(tmp_path / "mine.npy")
        assert "pickle" not in str(caught.value) and "unsafe" not in str(caught.value)
    for array in (b"", b"no archive", b"PK\3\4", whole.getvalue()):
        (tmp_path / "mine.npz").write_bytes(array)
        with pytest.raises(ValueError, match=r"mine\.npz cannot be read: it is no archive of arrays"):
            load(tmp_path / "mine.npz")
    np.savez(tmp_path / "mine.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(ValueError, match="holds the arrays a, b; expected one, or one named rows"):
        load(tmp_path / "mine.npz")
