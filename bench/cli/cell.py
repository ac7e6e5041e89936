"""The Hydra entry: one job is one cell is one record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stepscale.bench import interrupt
from stepscale.bench.cells.identity import identity
from stepscale.bench.cells.job import DTYPES, TF32, Job
from stepscale.bench.config import CONF, label_of
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import code_version, cores, description
from stepscale.bench.machine.device import choose_device, require_present
from stepscale.bench.records.schema import Cell, Config, Status, Task
from stepscale.bench.runs import progress
from stepscale.bench.runs.run import open_run, opened

WHOLE = {"dim": 1, "batch": 1, "depth": 1, "seed": 0}  # and the least that each may be


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> None:
    """Measure the cell of a configuration, unless its folder already holds it."""
    chosen = HydraConfig.get()
    run = open_run(Path(chosen.runtime.output_dir).resolve())
    try:
        record = run.measure(describe(cfg, run.path))
    except (OSError, UsageError) as error:
        sys.exit(f"{error}")
    run.multirun = chosen.mode == RunMode.MULTIRUN
    if not run.multirun:
        print(progress.details(record), f"record in {run.path}", sep="\n")
        if record.status is not Status.OK:
            sys.exit(1)


def describe(cfg: DictConfig, path: Path) -> Job:
    """Turn a configuration into a job, checking what Hydra does not.

    Raises:
        UsageError: a value is out of range; the message names it and what was expected.
    """
    check_numbers(cfg)  # first: learning rates are computed from the dim
    try:
        config: Config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    for name, allowed in (("dtype", DTYPES), ("task", tuple(Task))):
        if config[name] not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {config[name]!r}")
    device = choose_device(str(config["device"]))
    require_present(device)
    if config["dtype"] == TF32 and device != "cuda":
        raise UsageError(f"dtype={TF32} is a mode of CUDA devices, this cell's device is {device}; use dtype=float32")
    names = _names(config)
    whole: Config = {name: config[name] for name in ("dim", "batch", "depth", "dtype", "seed")}
    cell = Cell(**whole | names, device=device, threads=config["threads"] or cores.default_threads())
    machine = description.machine(device)
    name = identity(cell, config, machine, code_version.code_hash(), str(torch.__version__))
    return Job(name, cell, config, machine, shlex.join(["stepscale", *sys.argv[1:]]), path)


def check_numbers(cfg: DictConfig) -> None:
    """See that whole numbers are whole and limits positive.

    Raises:
        UsageError: one is not.
    """
    for name, least in WHOLE.items():
        if not _whole(cfg[name], least):
            raise UsageError(f"{name} must be a whole number of at least {least}, got {cfg[name]!r}")
    if cfg.threads is not None and not _whole(cfg.threads, 1):
        raise UsageError(f"threads must be null or a whole number of at least 1, got {cfg.threads!r}")
    for name in ("memory_gib", "timeout_s"):
        value = cfg[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise UsageError(f"{name} must be null or a positive number, got {value!r}")


def _names(config: Config) -> dict[str, str]:
    """Name optimizer, model and data as tables show them: by their files, with what the command line changed."""
    chosen = HydraConfig.get()
    choices, words = chosen.runtime.choices, list(chosen.overrides.task)
    names = {group: label_of(group, choices[group], words) for group in ("optimizer", "model", "data")}
    names["optimizer"] = str(config["label"] or names["optimizer"])
    if config["task"] == Task.TIME and (mode := config["timing"].get("compile")):
        names["optimizer"] += f"[compile={mode}]"
    return names


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def main() -> None:
    """Run Hydra; after a sweep, write the report of what was measured, also of one cut short."""
    interrupt.remember()
    try:
        try:
            job()
        finally:
            interrupt.check()
    except KeyboardInterrupt:
        more = "".join(f"; with hydra.sweep.dir={run.path} it goes on" for run in opened() if run.multirun)
        sys.stderr.write(f"\ninterrupted; every finished cell is recorded{more}\n")
        sys.exit(interrupt.STATUS)
    finally:
        for run in opened():
            if run.multirun and run.records:
                from stepscale.bench.cli.report import show  # matplotlib and scipy.stats: not before the first cell

                show(run.path, run.records.values(), run.complaints)
    if not all(any(record.status is Status.OK for record in run.records.values()) for run in opened()):
        sys.exit(1)
