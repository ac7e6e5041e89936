"""A user's file -> numbers and, where they are asked for, labels. Nothing in a file is ever run."""

from __future__ import annotations

import csv
import itertools
import tokenize
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd  # which takes a second to import, and only a .csv needs it

LAST = "last"  # the label that is in the last column
HEAD = 100  # lines of a .csv that tell how it is meant
UNREADABLE = (csv.Error, tokenize.TokenError, zipfile.BadZipFile)
SEPARATORS = {";": "semicolons", "\t": "tabs"}
NAMED = 10  # classes that a note lists


class Numbers(NamedTuple):
    """What a file holds."""

    rows: np.ndarray  # as in the file; of a .npy it stays there until it is used
    labels: np.ndarray | None  # int64, 0 … classes - 1, [rows]
    remarks: list[str]  # how it was read, where that could be meant otherwise


def read(path: Path, label: str | None) -> Numbers:
    """Read a ``.npy``, ``.npz`` or ``.csv``; with its labels, where ``label`` says where they are.

    Raises:
        FileNotFoundError, ValueError: naming the file, what is wrong with it and the remedy.
        MemoryError: naming the file.
    """
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}; set data.path")
    if path.suffix not in readers:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; expected .npy, .npz or .csv")
    try:
        return readers[path.suffix](path, label)
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory: {error}") from error
    except (ValueError, OSError, EOFError, SyntaxError, *UNREADABLE) as error:
        raise ValueError(f"{path} cannot be read: {_in_our_words(error)}") from error


def _in_our_words(error: Exception) -> str:
    """Return what is wrong with a file, and not NumPy's advice to let it run code."""
    words = str(error)
    if "memory-mapped: Python objects" in words or "Object arrays" in words:
        return "it holds Python objects; save it as an array of numbers"
    return "it is no array as numpy.save writes it" if "magic string" in words else words or type(error).__name__


def _read_npy(path: Path, label: str | None) -> Numbers:
    array = np.lib.format.open_memmap(path, mode="r")  # which reads no Python objects
    if label is None:
        return Numbers(array, None, [])
    if label != LAST or array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"it has no label {label!r}; of a .npy data.label is {LAST}, its last column, or null")
    return Numbers(array[:, :-1], *_classes(array[:, -1]))


def _read_npz(path: Path, label: str | None) -> Numbers:
    """Read the only array, or the one named ``rows``; labels are an array of their own."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays as numpy.savez writes it")
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays if name != label]
        if label is not None and label not in arrays:
            raise ValueError(f"it has no label {label!r}; data.label is one of its arrays, {', '.join(arrays)}")
        if len(names) > 1 and "rows" in names:
            names = ["rows"]
        if len(names) != 1:
            raise ValueError(f"it holds the arrays {', '.join(names) or '(none)'}; expected one, or one named rows")
        rows = arrays[names[0]]
        return Numbers(rows, None, []) if label is None else Numbers(rows, *_classes(arrays[label]))


def _read_csv(path: Path, label: str | None) -> Numbers:
    """Read numbers separated by commas; a header and an index, as pandas and R write them, are known and left out."""
    import pandas as pd

    with path.open(newline="", encoding="utf-8-sig") as file:
        head = list(itertools.islice((line for line in csv.reader(file) if line), HEAD))
    if not head:
        raise ValueError("it is empty")
    _refuse_separators(head)
    headed, remarks = _headed(head), []
    more = len(head[1]) - len(head[0]) if headed and len(head) > 1 else 0
    if more > 1:
        raise ValueError(f"its header names {len(head[0])} columns, the line below has {len(head[1])}")
    indexed = more == 1 or (headed and head[0][0] == "")  # as R and as pandas write it
    frame = pd.read_csv(path, header=0 if headed else None, index_col=0 if indexed else None)
    if not len(frame):
        raise ValueError("it has no row below its header")
    if headed and (numbers := _numbers(head[0])):
        remarks.append(f"its first line, {', '.join(numbers[:3])}, …, is taken for a header")
    if indexed:
        remarks.append("its first column has no name and is left out as an index")
    labels = None
    if label is not None:
        labels, told = _classes(frame.pop(_column(frame, label)).to_numpy())
        remarks += told
    _refuse_words(frame)
    return Numbers(frame.to_numpy(np.float64 if frame.dtypes.nunique() > 1 else None), labels, remarks)


def _refuse_separators(head: list[list[str]]) -> None:
    """See that fields are separated by commas, and that no line ends in one.

    Raises:
        ValueError: naming what separates them.
    """
    for mark, name in SEPARATORS.items():
        if any(mark in field for line in head for field in line):
            raise ValueError(f"its fields are separated by {name}; expected commas, and points in numbers")
    if all(len(line) == 1 and len(line[0].split()) > 1 for line in head[-2:]):
        raise ValueError("its fields are separated by blanks; expected commas")
    if len(head) > 1 and all(len(line) > 1 and line[-1] == "" for line in head[1:]):
        raise ValueError("its lines end in a comma, after which nothing comes; remove it")


def _headed(head: list[list[str]]) -> bool:
    """Whether the first line names columns: words over numbers, or 0, 1, 2, … over other numbers, as pandas writes."""
    first, below = [name.strip("# ") for name in head[0]], head[1:]  # NumPy's savetxt begins it with a #
    numbers, words = _numbers(first), [k for k, name in enumerate(first) if name and not _is_number(name)]
    if _counts(numbers) and below:
        return len(numbers) > 2 or any("." in field for line in below for field in line)
    over_numbers = any(all(k < len(line) and _is_number(line[k]) for line in below) for k in words)
    return bool(words) and (not numbers or (bool(below) and over_numbers))


def _numbers(line: list[str]) -> list[str]:
    return [field for field in line if field and _is_number(field)]


def _counts(names: list[str]) -> bool:
    """Whether names are the numbers from 0 or from 1 on."""
    return bool(names) and any(names == [str(start + k) for k in range(len(names))] for start in (0, 1))


def _is_number(field: str) -> bool:
    """Whether a field is a number; one that is empty is a missing one."""
    try:
        float(field or "nan")
    except ValueError:
        return False
    return True


def _column(frame: pd.DataFrame, label: str) -> str:
    """Return the name of the column of labels.

    Raises:
        ValueError: there is none.
    """
    found = [name for name in frame.columns if str(name) == str(label)]
    if label == LAST and not found:
        found = list(frame.columns[-1:])
    if not found:
        names = ", ".join(map(str, frame.columns[:NAMED]))
        raise ValueError(f"it has no column {label!r}; set data.label to {LAST} or one of {names}")
    return found[0]


def _refuse_words(frame: pd.DataFrame) -> None:
    """See that every column holds numbers.

    Raises:
        ValueError: naming the first that does not.
    """
    import pandas as pd

    for k, name in enumerate(frame.columns):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            bad = pd.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()
            place = int(bad.to_numpy().argmax())
            said = LAST if isinstance(name, int) and k == len(frame.columns) - 1 else name
            raise ValueError(
                f"it holds something else than numbers in column {name}, {frame[name].iloc[place]!r} in row {place};"
                f" leave that column out, or set data.label={said} for a classifier"
            )


def _classes(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number labels from 0, in their order, and say which is which.

    Raises:
        ValueError: they are neither whole numbers nor words.
    """
    if labels.ndim != 1:
        raise ValueError(f"its labels have shape {labels.shape}; expected [rows]")
    number = labels.dtype.kind in "biuf"
    whole = labels == np.round(labels.astype(np.float64)) if number else [isinstance(word, str) for word in labels]
    wrong = ~np.asarray(whole)
    if np.any(wrong):
        place = int(np.argmax(wrong))
        raise ValueError(f"the label of row {place} is {labels[place]}; expected whole numbers or words")
    classes, numbered = np.unique(labels.astype(np.int64) if number else labels.astype(str), return_inverse=True)
    more = ", …" if len(classes) > NAMED else ""
    said = f"its labels {', '.join(map(str, classes[:NAMED]))}{more} are 0 to {len(classes) - 1}"
    same = number and np.array_equal(classes, np.arange(len(classes)))
    return numbered.astype(np.int64), [] if same else [said]
