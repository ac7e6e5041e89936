"""Records as tables: one row a cell, or one a point of a training curve."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import pandas as pd  # which a process that measures does not wait for
from stepscale.bench.notes import clean, printable
from stepscale.bench.records import work
from stepscale.bench.records.headline import estimate
from stepscale.bench.records.schema import (
    AXES,
    CAVEATS,
    LAUNCH_BOUND,
    UNMARKED,
    Config,
    Curve,
    Machine,
    Record,
    Status,
    StepClass,
    Task,
    Timing,
    Trained,
)
from stepscale.bench.records.store import read_all

TUNED = ("lr", "damping")  # what an optimizer is tuned by, wherever its configuration has it
SGD, EXACT, QUADRATIC = "torch.optim.SGD", "stepscale.optimizers.Layerwise", "stepscale.models.Quadratic"
UNNAMED = Machine(cpu="", cores=0).name
Row = dict[str, object]


def load(folder: str | Path, task: str = "time") -> pd.DataFrame:
    """Return a run as a tidy table, one row a cell, failures included; times in ms, memory in MiB.

    ``stepscale.bench.records.columns`` says what each column holds. Records that are damaged, or whose cells have been
    measured again later, are left out, with a warning.

    Example:
        >>> cells = load("results/cpu-2-cores")
        >>> fine = cells[(cells["status"] == "ok") & ~cells["contended"]]
        >>> print(sorted(fine["optimizer"].unique())[:3])
        ['adam', 'inverse', 'kfac']

    Args:
        folder: of the run, with its ``records``.
        task: ``"time"`` or ``"train"``.

    Raises:
        FileNotFoundError: the folder holds no record of that task.
        ValueError: there is no such task.
    """
    if task not in list(Task):
        raise ValueError(f"task must be one of {', '.join(Task)}, got {task!r}")
    records, complaints = read_all(Path(folder))
    for complaint in [*complaints, *left_out([record for record in records if record.task == task])]:
        warnings.warn(complaint, stacklevel=2)
    table = cells_of(records, Task(task))
    if not len(table):
        raise FileNotFoundError(f"no records of task={task} in {Path(folder) / 'records'}")
    if task == Task.TIME:  # a hundred rows a cell, which no report asks for
        listed = {record.identity: work.operations(record) for record in records if record.status is Status.OK}
        table["work"] = table["identity"].map(listed.get)
    return table


def cells_of(records: Iterable[Record], task: Task) -> pd.DataFrame:
    """Return the records of a task as a tidy table, one row a cell."""
    import pandas as pd

    chosen = newest([record for record in records if record.task is task])
    figures = FIGURES if task is Task.TIME else TRAINING_FIGURES
    names = told_apart(chosen)
    rows = [row(record) | {"optimizer": name} for record, name in zip(chosen, names, strict=True)]
    table = pd.DataFrame(rows, columns=[*AXES, *FACTS, *figures]).astype(figures)
    named = table["machine"][table["machine"] != UNNAMED].unique()
    if len(named) == 1:  # a cell that died has been there too
        table["machine"] = named[0]
    return table.sort_values(list(AXES), ignore_index=True)


def curves(folder: str | Path) -> pd.DataFrame:
    """Return every point of every training run that counts, one row each, also of runs that ended early."""
    return points_of(read_all(Path(folder))[0])


def points_of(records: Collection[Record]) -> pd.DataFrame:
    """Return every point of the training runs among the records that count, one row each."""
    import pandas as pd

    tables, trained = [], newest([record for record in records if record.task is Task.TRAIN])
    for record, name in zip(trained, told_apart(trained), strict=True):
        if record.training is not None:
            points = pd.DataFrame(msgspec.to_builtins(record.training.curve)).astype(float)
            facts = pd.DataFrame([axes_of(record) | {"optimizer": name, "identity": record.identity}])
            tables.append(points.merge(facts, how="cross"))
    if tables:
        return pd.concat(tables, ignore_index=True)
    numbers = dict.fromkeys((field.name for field in msgspec.structs.fields(Curve)), "float")
    return pd.DataFrame(columns=[*numbers, *AXES, "identity"]).astype(numbers)


def axes_of(record: Record) -> Row:
    """Return what a record is of, by axis."""
    axes: Row = msgspec.structs.asdict(record.cell) | {"machine": record.machine.name}
    return {axis: clean(value) if isinstance(value, str) else value for axis, value in axes.items()}


def newest(records: Collection[Record]) -> list[Record]:
    """Leave out records of which the same cell and configuration has been measured again later.

    A failure of the same code does not count beside what did not fail. ``left_out`` says how many are left out.
    """
    last: dict[tuple[object, ...], list[Record]] = {}
    counts = {_place(record): record for record in sorted(records, key=lambda record: record.standing)}
    for record in sorted(counts.values(), key=lambda record: record.finished):
        same = last.setdefault(tuple(axes_of(record).values()), [])
        same[:] = [*(earlier for earlier in same if not _superseded(earlier, record)), record]
    kept = {id(record) for same in last.values() for record in same}
    return [record for record in records if id(record) in kept]


def _place(record: Record) -> tuple[object, ...]:
    """Return what a record is of: its identity, which of older records does not hold the machine, and all axes."""
    return (record.identity, *axes_of(record).values())


def _superseded(earlier: Record, later: Record) -> bool:
    """Whether a later record of a cell is of the same settings: of other code those that both know of."""
    before, after = _settings(earlier), _settings(later)
    if earlier.environment.code == later.environment.code:
        return before == after
    return all(before[key] == after[key] for key in before.keys() & after.keys())


def left_out(records: Collection[Record]) -> list[str]:
    """Say how many records count no more, since the same cells have been measured later."""
    count, named = len(records) - len(newest(records)), len({_place(record) for record in records})
    twice = len(records) - named  # of these no other code is the reason
    told = {
        "of cells that other code, data or optimizers have measured again since": count - twice,
        "of cells that the same code has measured several times: the latest that did not fail counts": twice,
    }
    return [f"Left out: {_counted(number)} {what}." for what, number in told.items() if number]


def _counted(number: int) -> str:
    return "1 record" if number == 1 else f"{number} records"


def united(runs: Iterable[Collection[Record]]) -> list[Record]:
    """Return the records of several runs; one that several have, as published copies have, once."""
    found: dict[str, list[Record]] = {}
    for record in (record for run in runs for record in run):
        same = found.setdefault(record.identity, [])
        if record.published not in (one.published for one in same):
            same.append(record)
    return [record for same in found.values() for record in same]


def told_apart(records: list[Record]) -> list[str]:
    """Name each record's optimizer. Records that differ in their configuration alone are different methods, no repeats.

    They share every axis and the seed; their name gets the differing settings appended. Trials of tuning keep theirs:
    they are told apart by what they try.
    """
    same_cell: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if not (record.task is Task.TRAIN and record.config["training"]["trial"]):
            same_cell.setdefault(tuple(axes_of(record).values()), []).append(record)
    endings = {id(record): ending for same in same_cell.values() for record, ending in _told_apart(same)}
    return [clean(record.cell.optimizer + endings.get(id(record), "")) for record in records]


def _told_apart(same: list[Record]) -> Iterator[tuple[Record, str]]:
    """Give each record of one cell the settings that differ between them: ``[lr=0.1]``, or nothing."""
    if len(same) == 1:  # as nearly always, and to compare settings takes its time
        yield same[0], ""
        return
    configs = list(map(_settings, same))
    keys = sorted(key for key in set().union(*configs) if len({str(config.get(key)) for config in configs}) > 1)
    for record, config in zip(same, configs, strict=True):
        yield record, f"[{','.join(f'{key}={config.get(key)}' for key in keys)}]" if keys else ""


def _settings(record: Record) -> Row:
    """Return a configuration's values by their dotted keys; of an axis, as device, what was measured counts."""
    return {key: value for key, value in _flat(record.config).items() if key not in AXES}


def _flat(config: object, path: str = "") -> Row:
    """Return a configuration's values by their dotted keys."""
    if not isinstance(config, dict):
        return {path[:-1]: config}
    return {key: value for name, part in config.items() for key, value in _flat(part, f"{path}{name}.").items()}


def row(record: Record) -> Row:
    """One record's row; figures are None where a cell failed."""
    facts: Row = {
        "status": str(record.status),
        "reason": record.reason and printable(record.reason),
        "identity": record.identity,
    }
    result = axes_of(record) | facts | {"task": str(record.task)}
    if record.task is Task.TRAIN:
        return result | _training_figures(record)
    return result | (_figures(record) if record.status is Status.OK else dict.fromkeys(FIGURES))


def tuned(config: object, path: str = "") -> dict[str, float]:
    """Return what an optimizer's configuration is tuned by: the keys of Hydra, and their values."""
    found: dict[str, float] = {}
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in TUNED and isinstance(value, float | int):
            found[path + key] = float(value)
        found |= tuned(value, f"{path}{key}.")
    return found


def quadratic(config: Config) -> dict[str, float] | None:
    """Return what the rate of plain SGD on a quadratic without noise depends on; None of any other run."""
    model, optimizer = config.get("model", {}), config["optimizer"]
    update, direction = (optimizer.get(part) or {} for part in ("update", "direction"))
    plain = not any(update.get(name) for name in ("weight_decay", "dampening", "maximize"))
    known = model.get("_target_") == QUADRATIC and {"condition", "dim"} <= model.keys() and not model.get("noise")
    steady = update.get("_target_") == SGD and "lr" in update and not optimizer.get("scheduler")
    if not (known and plain and steady and direction.get("_target_") == EXACT) or model["dim"] == 1:
        return None
    rule = {"condition": model["condition"], "lr": update["lr"], "momentum": update.get("momentum", 0)}
    return {**rule, "nesterov": float(update.get("nesterov", False))}


def _training_figures(record: Record) -> Row:
    """What a run came to; likelihoods are None where it did not come to its end."""
    result: Row = dict.fromkeys(TRAINING_FIGURES)
    settings = record.config["training"]
    result |= {"trial": settings["trial"], "budget": _budget(settings), "tuned": tuned(record.config["optimizer"])}
    result["quadratic"] = quadratic(record.config)
    if record.tuning is not None:
        result |= {"tuning_trials": record.tuning.trials, "tuning_s": record.tuning.seconds}
    result["caveat"] = next((f"no {what}: {record.notes[what]}" for what in CAVEATS if what in record.notes), None)
    if record.status is not Status.OK or record.training is None:
        return result
    training = record.training
    result |= {"steps": training.steps, "seconds": training.seconds, "stopped_by": training.stopped_by}
    result["unit"] = training.number.unit
    step_ms = 1e3 * training.seconds / training.steps if training.steps else None
    result |= {"step_ms": step_ms, "halved": training.curve.halved[-1]}
    result["inner_iterations"] = training.curve.inner_iterations[-1]
    result |= {"drift_nats": training.drift_nats, "contended": training.contended}
    return result | _ends(record, training)


def _budget(settings: Config) -> str:
    """Say what a training run may take."""
    steps, seconds = settings.get("max_steps"), settings.get("time_limit_s")
    parts = [f"{steps:g} steps"] if steps is not None else []
    parts += [f"{seconds:g} s of steps"] if seconds is not None else []
    return " or ".join(parts) or "no limit"


def _ends(record: Record, training: Trained) -> Row:
    """What a run came to over all rows."""
    if training.final is None:
        return {}
    final, offset = training.final, record.data.bits_offset if record.data else None
    result: Row = msgspec.structs.asdict(final)
    if final.held_out_nats is not None and offset is not None:
        width = record.config["data"].get("dim") or record.cell.dim  # which earlier records say no more of
        result["held_out_bits"] = offset - final.held_out_nats / (width * math.log(2))
    return result


FACTS = ("status", "reason", "identity", "task")
TRAINING_FIGURES = {
    **dict.fromkeys(("trial", "contended"), "boolean"),
    **dict.fromkeys(("stopped_by", "tuned", "budget", "caveat", "unit", "quadratic"), "object"),
    **dict.fromkeys(("steps", "seconds", "step_ms", "validation_nats", "held_out_nats", "held_out_bits"), "float"),
    **dict.fromkeys(
        ("amari", "fast_ica_amari", "halved", "inner_iterations", "drift_nats", "tuning_trials", "tuning_s"), "float"
    ),
}


def _figures(record: Record) -> Row:
    timing, counts, memory, direction = record.timing, record.counts, record.memory, record.direction
    assert timing is not None and memory is not None  # as of every record that is ok
    judged = estimate(timing.blocks)
    step_ms = 1e3 * judged.step_s
    phases, classes = phases_ms(timing.trace, step_ms)
    return dict.fromkeys(FIGURES) | {
        "contended": judged.contended,
        "step_ms": step_ms,
        "limit_ms": 1e3 * judged.limit_s,
        "ratio": judged.ratio,
        "ratio_low": judged.ratio_low,
        "ratio_high": judged.ratio_high,
        "cheap_ms": min(classes),
        "peak_ms": max(classes),
        "first_step_ms": 1e3 * timing.first_step_s,
        "period": sum(len(entry.positions) for entry in timing.trace),
        "composed": timing.composed,
        "repeats": timing.repeats,
        "graphs": timing.graphs,
        "blocks": len(timing.blocks.step_s),
        "stopped_by": timing.stopped_by,
        "launch_bound": launch_bound(timing, judged.step_s),
        "clock": timing.clock or ("cuda" if record.cell.device == "cuda" else "wall"),
        "turns": timing.turns,
        "looks": record.looks,
        "round_ms": [1e3 * seconds for seconds in timing.blocks.step_s],
        "peak_mib": memory.peak_mib,
        "energy_j": timing.gpu.energy_j if timing.gpu else None,
        "phases_ms": phases,
        "profile": msgspec.to_builtins(timing.profile),
        "log_det": direction.log_det if direction else None,
        "cosine": direction.cosine if direction else None,
        **(work.figures(counts, timing, record.cell.dim, judged.step_s) if counts else {}),
    }


def launch_bound(timing: Timing, step_s: float) -> bool | None:
    """Whether the device waits for its host during too much of a step; None where no kernel of it was seen."""
    if timing.gpu is None:
        return False
    return None if timing.gpu.busy_s is None else 1 - timing.gpu.busy_s / step_s > LAUNCH_BOUND


FIGURES = {
    **dict.fromkeys(("step_ms", "limit_ms", "ratio", "ratio_low", "ratio_high", "cheap_ms", "peak_ms"), "float"),
    **dict.fromkeys(
        ("first_step_ms", "period", "blocks", "gflop_per_s", "peak_mib", "energy_j", "cosine", "looks"), "float"
    ),
    **dict.fromkeys(("flops", "limit_flops", "operations", "synchronisations"), "float"),
    **dict.fromkeys(("cubic_share", "flop_exponent", "looks", "graphs"), "float"),
    **dict.fromkeys(("contended", "composed", "launch_bound", "repeats"), "boolean"),
    **dict.fromkeys(("stopped_by", "uncounted", "phases_ms", "profile", "log_det", "clock", "turns"), "object"),
    **dict.fromkeys(("round_ms", "shares", "order_flops", "cubic_operations", "inexact"), "object"),
}


def phases_ms(trace: list[StepClass], step_ms: float) -> tuple[dict[str, float], list[float]]:
    """Milliseconds of each phase, amortised over the period, and of a whole step of each class.

    Scaled to what the blocks took: the trace is of other steps, each of which stops the clock.
    """
    total: dict[str, float] = {}
    for entry in trace:
        for phase, seconds in entry.phases_s.items():
            total[phase] = total.get(phase, 0.0) + seconds * entry.share
    scale = step_ms / sum(total.values())
    phases = {phase: scale * seconds for phase, seconds in total.items()}
    shown = {phase: ms for phase, ms in phases.items() if phase != UNMARKED or ms > 0.01 * step_ms}
    return shown, [scale * sum(entry.phases_s.values()) for entry in trace]
