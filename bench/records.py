"""One JSON file a cell: every fact inside, none in its name, raw blocks never averaged away."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "out_of_memory", "diverged", "too_slow", "killed", "failed")
AXES = ("optimizer", "model", "data", "dim", "batch", "depth", "dtype", "device", "threads", "seed")
GROUP = ("model", "data", "batch", "depth", "dtype", "device", "threads")  # shared by cells that may be compared
MEASURED = {"time": {"timing", "counts", "memory"}, "train": {"training", "data"}}  # what an ok record holds
UNMARKED = "unmarked"  # the phase of what a step does after its last mark

Record = dict[str, Any]


class BadRecordError(ValueError):
    """A file that is no whole record."""


def identity(cell: dict[str, Any], config: dict[str, Any], code: str, torch_version: str) -> str:
    """Hash all that a cell's measurement depends on; also its file's name."""
    facts = json.dumps([SCHEMA, cell, config, code, torch_version], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def save(record: Record, folder: Path) -> Path:
    """Write a record so that it is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['identity']}.json"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(_rounded(record), separators=(",", ":")) + "\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"the record {path} cannot be written: {error}; records already there are whole") from error
    return path


def _rounded(value: Any) -> Any:
    """Keep seven digits: more than any clock here resolves, and half the size."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        BadRecordError: naming the file and what is wrong with it.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadRecordError(
            f"{path} is damaged ({error}); delete it and run again to measure the cell anew"
        ) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise BadRecordError(f"{path} has schema {found!r}; this version of stepscale reads schema {SCHEMA}")
    record.setdefault("task", "time")  # there was no other once
    if record["task"] not in MEASURED:
        raise BadRecordError(f"{path} has the task {record['task']!r}; expected one of {', '.join(MEASURED)}")
    needed = {"identity", "status", "reason", "cell", "config", "environment"}
    needed |= MEASURED[record["task"]] if record.get("status") == "ok" else set()
    missing = sorted(needed - record.keys()) + [axis for axis in AXES if axis not in record.get("cell", {})]
    if missing:
        raise BadRecordError(f"{path} lacks {', '.join(missing)}")
    if record["status"] not in STATUSES:
        raise BadRecordError(f"{path} has the status {record['status']!r}; expected one of {', '.join(STATUSES)}")
    return record


def read_all(folder: Path) -> tuple[list[Record], list[str]]:
    """Return a run's whole records and what is wrong with the others."""
    records, complaints = [], []
    for path in sorted((folder / "records").glob("*.json")):
        try:
            records.append(read(path))
        except BadRecordError as error:
            complaints.append(str(error))
    return records, complaints
