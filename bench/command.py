"""The Hydra entry: one job is one cell is one record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stepscale.bench import folder, interrupt, server
from stepscale.bench.device import choose_device, require_present
from stepscale.bench.job import DTYPES, TF32, Job, job_of
from stepscale.bench.records import MEASURED
from stepscale.bench.tuning import label_of

WHOLE = {"dim": 1, "batch": 1, "depth": 1, "seed": 0}  # and the least that each may be


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def job(cfg: DictConfig) -> None:
    """Measure the cell of a configuration, unless its folder already holds it."""
    chosen = HydraConfig.get()
    run = folder.open_run(Path(chosen.runtime.output_dir).resolve())
    try:
        record = run.measure(describe(cfg, run.path))
    except OSError as error:
        sys.exit(f"{error}")
    run.multirun = chosen.mode == RunMode.MULTIRUN
    if not run.multirun:
        print(folder.details(record), f"record in {run.path}", sep="\n")
        if record["status"] != "ok":
            sys.exit(1)


def describe(cfg: DictConfig, path: Path) -> Job:
    """Turn a configuration into a job, checking what Hydra does not.

    Raises:
        SystemExit: a value is out of range; the message names it and what was expected.
    """
    for name, least in WHOLE.items():  # first: learning rates are computed from the dim
        if not _whole(cfg[name], least):
            sys.exit(f"{name} must be a whole number of at least {least}, got {cfg[name]!r}")
    if cfg.threads is not None and not _whole(cfg.threads, 1):
        sys.exit(f"threads must be null or a whole number of at least 1, got {cfg.threads!r}")
    for name in ("memory_gib", "timeout_s"):
        value = cfg[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            sys.exit(f"{name} must be null or a positive number, got {value!r}")
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        sys.exit(f"{error.full_key}: {str(error).splitlines()[0]}")
    if config["dtype"] not in DTYPES:
        sys.exit(f"dtype must be one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    if config["task"] not in MEASURED:
        sys.exit(f"task must be one of {', '.join(MEASURED)}, got {config['task']!r}")
    chosen = HydraConfig.get()
    choices, words = chosen.runtime.choices, list(chosen.overrides.task)
    facts: dict[str, Any] = {group: label_of(group, choices[group], words) for group in ("optimizer", "model", "data")}
    facts["optimizer"] = str(config["label"] or facts["optimizer"])
    if config["task"] == "time" and (mode := config["timing"].get("compile")):
        facts["optimizer"] += f"[compile={mode}]"
    try:
        facts["device"] = choose_device(str(config["device"]))
        require_present(facts["device"])
    except ValueError as error:
        sys.exit(str(error))
    if config["dtype"] == TF32 and facts["device"] != "cuda":
        sys.exit(f"dtype={TF32} is a mode of CUDA devices, this cell's device is {facts['device']}; use dtype=float32")
    facts["threads"] = config["threads"] or server.default_threads()
    return job_of(config, facts, shlex.join(["stepscale", *sys.argv[1:]]), path)


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
        more = "".join(f"; with hydra.sweep.dir={run.path} it goes on" for run in folder.opened() if run.multirun)
        sys.stderr.write(f"\ninterrupted; every finished cell is recorded{more}\n")
        sys.exit(interrupt.STATUS)
    finally:
        for run in folder.opened():
            if run.multirun and run.rows:
                from stepscale.bench import report  # matplotlib and scipy.stats: not before the first cell

                report.show(run.path)
    if not all(any(row["status"] == "ok" for row in run.rows.values()) for run in folder.opened()):
        sys.exit(1)
