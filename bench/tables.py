"""Records as tables: one row a cell, or one a point of a training curve."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepscale.bench.contention import CONTENDED
from stepscale.bench.estimate import estimate
from stepscale.bench.records import AXES, MEASURED, UNMARKED, Record, read_all

if TYPE_CHECKING:
    import pandas as pd  # which a process that measures does not wait for

TUNED = ("lr", "damping")  # what an optimizer is tuned by, wherever its configuration has it
LAUNCH_BOUND = 0.25  # share of a step for which the device waits for the host


def load(folder: str | Path, task: str = "time") -> pd.DataFrame:
    """Return a run as a tidy table, one row a cell, failures included; times in ms, memory in MiB.

    ``task`` is ``"time"`` or ``"train"``. Damaged records are named in a warning and left out.

    Raises:
        FileNotFoundError: the folder holds no record of that task.
        ValueError: there is no such task.
    """
    records, complaints = read_all(Path(folder))
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=2)
    if task not in MEASURED:
        raise ValueError(f"task must be one of {', '.join(MEASURED)}, got {task!r}")
    chosen = [record for record in records if record["task"] == task]
    rows = told_apart(chosen) if task == "time" else [row(record) for record in chosen]
    if not rows:
        raise FileNotFoundError(f"no records of task={task} in {Path(folder) / 'records'}")
    import pandas as pd

    table = pd.DataFrame(rows).astype(FIGURES if task == "time" else TRAINING_FIGURES)
    return table.sort_values(list(AXES), ignore_index=True)


def curves(folder: str | Path) -> pd.DataFrame:
    """Return every point of every training run, one row each, also of runs that ended early."""
    import pandas as pd

    tables = []
    for record in read_all(Path(folder))[0]:
        if "training" in record:
            points = pd.DataFrame(record["training"]["curve"]).astype(float)
            tables.append(points.assign(**record["cell"], identity=record["identity"]))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def told_apart(records: list[Record]) -> list[dict[str, Any]]:
    """Rows of records, where what agrees on every axis and the seed is no other seed: it gets another name.

    The name says what differs in its configuration; where nothing does, the code being another, the latest counts.
    """
    same_cell: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        same_cell.setdefault(tuple(record["cell"][axis] for axis in AXES), []).append(record)
    rows = []
    for same in same_cell.values():
        configs = [_flat(record["config"]) for record in same]
        keys = sorted(k for k in set().union(*configs) if len({str(config.get(k)) for config in configs}) > 1)
        order = sorted(range(len(same)), key=lambda number: same[number]["finished"])
        latest = {str([configs[number].get(k) for k in keys]): number for number in order}
        for number in latest.values():
            name = f"[{','.join(f'{k}={configs[number].get(k)}' for k in keys)}]" if keys else ""
            rows.append(row(same[number]) | {"optimizer": same[number]["cell"]["optimizer"] + name})
    return rows


def _flat(config: Any, path: str = "") -> dict[str, Any]:
    """Return a configuration's values by their dotted keys."""
    if not isinstance(config, dict):
        return {path[:-1]: config}
    return {key: value for name, part in config.items() for key, value in _flat(part, f"{path}{name}.").items()}


def row(record: Record) -> dict[str, Any]:
    """One record's row; figures are None where a cell failed."""
    result = {axis: record["cell"][axis] for axis in AXES}
    result |= {name: record[name] for name in ("status", "reason", "identity", "task")}
    if record["task"] == "train":
        return result | _training_figures(record)
    return result | (_figures(record) if record["status"] == "ok" else dict.fromkeys(FIGURES))


def tuned(config: Any, path: str = "") -> dict[str, float]:
    """Return what an optimizer's configuration is tuned by: the keys of Hydra, and their values."""
    found: dict[str, float] = {}
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in TUNED and isinstance(value, float | int):
            found[path + key] = float(value)
        found |= tuned(value, f"{path}{key}.")
    return found


def _training_figures(record: Record) -> dict[str, Any]:
    """What a run came to; likelihoods are None where it did not come to its end."""
    result: dict[str, Any] = dict.fromkeys(TRAINING_FIGURES)
    result |= {"trial": record["config"]["training"]["trial"], "tuned": tuned(record["config"]["optimizer"])}
    if record["status"] != "ok":
        return result
    training, curve = record["training"], record["training"]["curve"]
    result |= {name: training[name] for name in ("steps", "seconds", "stopped_by")} | training["final"]
    result |= {"step_ms": 1e3 * training["seconds"] / training["steps"], "halved": curve["halved"][-1]}
    result["drift_nats"] = max((abs(drift) for drift in curve["drift_nats"] if drift is not None), default=None)
    result["contended"] = (training["other_cores"] or 0) > CONTENDED
    if "held_out_nats" in training["final"] and record["data"]["bits_offset"] is not None:
        nats = training["final"]["held_out_nats"]
        result["held_out_bits"] = record["data"]["bits_offset"] - nats / (record["cell"]["dim"] * math.log(2))
    return result


TRAINING_FIGURES = {
    **dict.fromkeys(("trial", "contended"), "boolean"),
    **dict.fromkeys(("stopped_by", "tuned"), "object"),
    **dict.fromkeys(("steps", "seconds", "step_ms", "validation_nats", "held_out_nats", "held_out_bits"), "float"),
    **dict.fromkeys(("amari", "fast_ica_amari", "halved", "drift_nats"), "float"),
}


def _figures(record: Record) -> dict[str, Any]:
    timing, counts = record["timing"], record["counts"]
    judged = estimate(timing["blocks"], CONTENDED)
    phases_ms, classes = _phases_ms(timing["trace"], 1e3 * judged.step_s)
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
        "launch_bound": "busy_s" in timing and 1 - (timing["busy_s"] or 0.0) / judged.step_s > LAUNCH_BOUND,
        "flops": counts["flops"],
        "limit_flops": counts["limit_flops"],
        "operations": counts["operations"],
        "synchronisations": counts["synchronisations"],
        "uncounted": ", ".join(counts["uncounted"]) or None,
        "gflop_per_s": counts["flops"] / judged.step_s * 1e-9,
        "peak_mib": record["memory"]["peak_mib"],
        "energy_j": timing.get("energy_j"),
        "phases_ms": phases_ms,
        "profile": timing.get("profile"),
        **{name: record.get("direction", {}).get(name) for name in ("log_det", "cosine")},  # older records lack it
    }


FIGURES = {
    **dict.fromkeys(("step_ms", "limit_ms", "ratio", "ratio_low", "ratio_high", "cheap_ms", "peak_ms"), "float"),
    **dict.fromkeys(("first_step_ms", "period", "blocks", "gflop_per_s", "peak_mib", "energy_j", "cosine"), "float"),
    **dict.fromkeys(("flops", "limit_flops", "operations", "synchronisations"), "float"),
    **dict.fromkeys(("contended", "composed", "launch_bound"), "boolean"),
    **dict.fromkeys(("stopped_by", "uncounted", "phases_ms", "profile", "log_det"), "object"),
}


def _phases_ms(trace: list[dict[str, Any]], step_ms: float) -> tuple[dict[str, float], list[float]]:
    """Milliseconds of each phase, amortised over the period, and of a whole step of each class.

    Scaled to what the blocks took: the trace is of other steps, each of which stops the clock.
    """
    total: dict[str, float] = {}
    for entry in trace:
        for phase, seconds in entry["phases_s"].items():
            total[phase] = total.get(phase, 0.0) + seconds * entry["share"]
    scale = step_ms / sum(total.values())
    phases = {phase: scale * seconds for phase, seconds in total.items()}
    shown = {phase: ms for phase, ms in phases.items() if phase != UNMARKED or ms > 0.01 * step_ms}
    return shown, [scale * sum(entry["phases_s"].values()) for entry in trace]
