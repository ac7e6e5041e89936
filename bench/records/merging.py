"""Several runs' folders into one: a set of records that only grows, whatever is merged first and however often.

A record is copied as it is, byte for byte. Where a cell has several records, one has its name, and counts: the latest
that did not fail. The others lie beside it, under ``store.name_beside``. So what a folder comes to hold hangs on which
records there are, and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepscale.bench.atomic import atomic_write
from stepscale.bench.errors import BadRecordError, OtherSchemaError, UsageError
from stepscale.bench.records import store
from stepscale.bench.records.schema import Config, Record

PICTURES = "pictures"  # of training runs, in a run's folder: named as their records are


class Found(NamedTuple):
    """A record, as its file has it, and the files of its pictures: of a copy in another folder, too."""

    record: Record
    encoded: bytes
    pictures: list[Path]
    path: Path


class Merged(NamedTuple):
    """What a merge has come to."""

    records: int  # in the folder, now
    new: int  # of them
    beside: int  # of them, that do not count: another record of the same cell does
    complaints: list[str]  # of damaged files, which were left out


def merge(folders: Sequence[Path], into: Path) -> Merged:
    """Put the records of some folders into another, with their pictures, their logs of operations and their plans.

    Raises:
        UsageError: a folder holds no record, or one of a schema that this version cannot read; nothing is written.
        BadRecordError: a folder's plan is damaged; nothing is written.
        OSError: a file cannot be written; the records that are there are whole.
    """
    found, complaints = list[Found](), list[str]()
    for folder in (sources := [*folders, into]):
        try:
            own, told = read(folder)
        except UsageError as error:
            raise UsageError(f"{error}: merge with the version that wrote it, or leave out {folder}") from error
        if not own and folder != into:
            raise UsageError(" ".join([f"{folder} holds no record to merge; name folders of runs.", *told]))
        found, complaints = found + own, complaints + told
    plans, named = [plan for folder in sources for plan in plans_of(folder)], names(found)
    new = write(named, into)
    for one in found:
        if one.path.parent == into / store.RECORDS and one.path.stem not in named:  # a copy whose record has come
            for path in (one.path, into / PICTURES / f"{one.path.stem}.npz"):
                path.unlink(missing_ok=True)
    _copy_logs(sources, into)
    if plans:
        _write(joined(plans), into / store.PLAN)
    beside = len(named) - len({one.record.identity for one in named.values()})
    return Merged(len(named), new, beside, complaints)


def read(folder: Path) -> tuple[list[Found], list[str]]:
    """Return a folder's records as their files have them, and what is wrong with the others.

    Raises:
        UsageError: a record is of a schema that this version cannot read.
    """
    found, complaints = list[Found](), list[str]()
    for path in sorted((folder / store.RECORDS).glob("*.json")):
        try:
            record, encoded = store.read_encoded(path)
        except BadRecordError as error:
            if isinstance(error.__cause__, OtherSchemaError):
                raise UsageError(str(error)) from error
            complaints.append(f"Left out: {error}")
            continue
        pictures = folder / PICTURES / f"{path.stem}.npz"
        found.append(Found(record, encoded, [pictures] if pictures.exists() else [], path))
    return found, complaints


def names(found: Iterable[Found]) -> dict[str, Found]:
    """Name records, each once; of a cell's those that do not count stand before the one that does."""
    cells: dict[str, list[Found]] = {}
    for one in found:
        cells.setdefault(one.record.identity, []).append(one)
    named = dict[str, Found]()
    for identity, records in cells.items():
        by_name = {store.name_beside(identity, one.encoded): one for one in _distinct(records)}
        *beside, counts = sorted(by_name, key=lambda name: (by_name[name].record.standing, name))
        named |= {name: by_name[name] for name in beside} | {identity: by_name[counts]}
    return named


def _distinct(found: Iterable[Found]) -> list[Found]:
    """Leave out copies; of one that was published, and so knows less, and the record itself the latter is kept."""
    kept = list[Found]()
    for one in sorted(found, key=lambda one: (len(one.encoded), one.encoded), reverse=True):
        same = next((other for other in kept if other.record.published == one.record.published), None)
        if same is None:
            kept.append(one)
        else:
            same.pictures.extend(one.pictures)
    return kept


def write(named: dict[str, Found], into: Path) -> int:
    """Write records and their pictures by their names; return how many were not there.

    A record that counts no more is written to its new place before another takes its old one.

    Raises:
        OSError: a file cannot be written.
    """
    new = 0
    for name, one in named.items():
        _write_greatest(one.pictures, into / PICTURES / f"{name}.npz")
        new += _write(one.encoded, into / store.RECORDS / f"{name}.json")
    return new


def _write(content: bytes, path: Path) -> bool:
    """Write a file, unless it is there as it is to be; return whether it was not."""
    if path.exists() and path.read_bytes() == content:
        return False
    with atomic_write(path, lasting=False) as file:  # what was merged is where it was, too
        file.write(content)
    return True


def _write_greatest(paths: Iterable[Path], target: Path) -> None:
    """Write the one of several files that has the greatest hash: a choice that hangs on no order; without any, none."""
    contents = [path.read_bytes() for path in paths]
    if contents:
        _write(max(contents, key=lambda content: hashlib.sha256(content).digest()), target)
    else:
        target.unlink(missing_ok=True)


def _copy_logs(folders: Iterable[Path], into: Path) -> None:
    """Copy what is known of steps before they are timed: who goes on in the folder need not log them again."""
    by_name: dict[str, list[Path]] = {}
    for path in (path for folder in folders for path in sorted((folder / store.LOGS).glob("*.json"))):
        by_name.setdefault(path.name, []).append(path)
    for name, paths in by_name.items():
        _write_greatest(paths, into / store.LOGS / name)


def plans_of(folder: Path) -> list[Config]:
    """Return a folder's plan as its file has it, or those that were merged in it; none where there is none.

    Raises:
        BadRecordError: it is damaged; the message names the file.
    """
    if store.read_plan(folder) is None:
        return []
    plan: Config = json.loads((folder / store.PLAN).read_bytes())
    return plan.get("merged") or [plan]


def joined(plans: Iterable[Config]) -> bytes:
    """Return plans as a file: the plan, or a list of them where there are several; in any order the same."""
    distinct = {json.dumps(plan, sort_keys=True): plan for plan in plans}
    found = [distinct[key] for key in sorted(distinct)]
    merged = found[0] if len(found) == 1 else {"cells": sum(one["cells"] for one in found), "merged": found}
    return json.dumps(merged, indent=1).encode() + b"\n"
