"""One JSON file a cell: every fact inside, none in its name, raw blocks never averaged away."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from stepscale.bench.contention import CONTENDED
from stepscale.bench.estimate import estimate

SCHEMA = 1
STATUSES = ("ok", "out_of_memory", "diverged", "too_slow", "killed", "failed")
AXES = ("optimizer", "model", "data", "dim", "batch", "depth", "dtype", "device", "threads", "seed")
GROUP = ("model", "data", "batch", "depth", "dtype", "device", "threads")  # shared by cells that may be compared
UNMARKED = "unmarked"  # the phase of what a step does after its last mark
LAUNCH_BOUND = 0.25  # share of a step for which the device waits for the host

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
    needed = {"identity", "status", "reason", "cell", "config", "environment"}
    needed |= {"timing", "counts", "memory"} if record.get("status") == "ok" else set()
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


def load(folder: str | Path) -> pd.DataFrame:
    """Return a run as a tidy table, one row a cell, failures included; times in ms, memory in MiB.

    Damaged records are named in a warning and left out.

    Raises:
        FileNotFoundError: the folder holds no record.
    """
    records, complaints = read_all(Path(folder))
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=2)
    if not records:
        raise FileNotFoundError(f"no records in {Path(folder) / 'records'}")
    table = pd.DataFrame([row(record) for record in records])
    return table.sort_values(list(AXES), ignore_index=True)


def row(record: Record) -> dict[str, Any]:
    """One record's row; figures are None where a cell failed."""
    result = {axis: record["cell"][axis] for axis in AXES}
    result |= {"status": record["status"], "reason": record["reason"], "identity": record["identity"]}
    return result | (_figures(record) if record["status"] == "ok" else dict.fromkeys(FIGURES))


def _figures(record: Record) -> dict[str, Any]:
    timing, counts = record["timing"], record["counts"]
    judged = estimate(timing["blocks"], CONTENDED)
    classes = [1e3 * sum(entry["phases_s"].values()) for entry in timing["trace"]]
    busy_s = timing.get("busy_s")
    return {
        "contended": judged.contended,
        "step_ms": 1e3 * judged.step_s,
        "limit_ms": 1e3 * judged.limit_s,
        "ratio": judged.ratio,
        "ratio_low": judged.ratio_low,
        "ratio_high": judged.ratio_high,
        "cheap_ms": min(classes),
        "peak_ms": max(classes),
        "first_step_ms": 1e3 * timing["first_step_s"],
        "period": sum(len(entry["positions"]) for entry in timing["trace"]),
        "composed": timing["composed"],
        "blocks": len(timing["blocks"]["step_s"]),
        "stopped_by": timing["stopped_by"],
        "waiting": None if busy_s is None else max(0.0, 1 - busy_s / judged.step_s),
        "launch_bound": busy_s is not None and 1 - busy_s / judged.step_s > LAUNCH_BOUND,
        "flops": counts["flops"],
        "limit_flops": counts["limit_flops"],
        "operations": counts["operations"],
        "synchronisations": counts["synchronisations"],
        "uncounted": ", ".join(counts["uncounted"]) or None,
        "gflop_per_s": counts["flops"] / judged.step_s * 1e-9,
        "peak_mib": record["memory"]["peak_mib"],
        "phases_ms": _phases_ms(timing["trace"]),
    }


FIGURES = (
    "contended", "step_ms", "limit_ms", "ratio", "ratio_low", "ratio_high", "cheap_ms", "peak_ms", "first_step_ms",
    "period", "composed", "blocks", "stopped_by", "waiting", "launch_bound", "flops", "limit_flops", "operations",
    "synchronisations", "uncounted", "gflop_per_s", "peak_mib", "phases_ms",
)  # fmt: skip


def _phases_ms(trace: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds a step of each phase, amortised over the period."""
    total: dict[str, float] = {}
    for entry in trace:
        for phase, seconds in entry["phases_s"].items():
            total[phase] = total.get(phase, 0.0) + 1e3 * seconds * entry["share"]
    return {phase: ms for phase, ms in total.items() if phase != UNMARKED or ms > 0.01 * sum(total.values())}
