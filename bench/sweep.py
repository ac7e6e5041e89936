"""The main job: several Hydra multiruns into one folder, resumed where an earlier one stopped.

``stepscale sweep NAME`` runs ``conf/sweep/NAME.yaml``, or a file of the user's. Of timing, each of its grids is one
multirun for each seed, so that optimizers are shuffled anew within the dims, which ascend. Of training, each point of
its grids is tuned by one multirun, and what that chose is trained on new seeds by another. Further arguments go to
Hydra; one that names what a grid names takes its place.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from yaml import YAMLError

from stepscale.bench import environment, folder, interrupt, tuning
from stepscale.bench.command import job
from stepscale.bench.device import choose_device
from stepscale.bench.errors import UsageError
from stepscale.bench.schema import Status

SWEEPS = Path(__file__).parent / "conf" / "sweep"
LOCAL = Path("results/local")
NEEDED = ("task", "settings", "seeds", "grids")


def main(words: list[str]) -> None:
    """Run a sweep, or what is left of it, and write its report."""
    parser = argparse.ArgumentParser(prog="stepscale sweep", description="Run a sweep and write its report.")
    parser.add_argument("name", help=f"one of {', '.join(names())}, or a .yaml of your own like theirs")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="further words for Hydra, for every cell")
    arguments = parser.parse_args(words)
    plan = read_sweep(arguments.name, arguments.overrides)
    interrupt.remember()
    path = unfinished(plan) or new_folder()
    save_plan(path, plan)
    run = folder.open_run(path)
    run.planned = plan["cells"]
    print(f"{plan['cells']} cells, {len(run.records)} of them there already, into {path}", flush=True)
    try:
        failed = run_multiruns(path, plan["multiruns"])
        for point in plan.get("points", []):
            failed |= run_multiruns(path, [tuning.finals(point, run.records.values(), plan["seeds"])])
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; {len(run.records)} cells are recorded, the same command goes on from there\n")
        sys.exit(interrupt.STATUS)
    if not failed:
        save_plan(path, plan | {"finished": True})
    if not run.records:
        sys.exit("no cell was recorded")
    from stepscale.bench import report  # matplotlib and scipy.stats: not before the first cell

    print()
    report.show(path, run.records.values(), run.complaints)
    if failed or all(record.status is not Status.OK for record in run.records.values()):
        sys.exit(1)


def names() -> list[str]:
    """Return the sweeps there are."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


def read_sweep(name: str, overrides: list[str]) -> dict[str, Any]:
    """Return what a sweep is to do on this machine: its multiruns, their cells, the code's hash.

    Raises:
        UsageError: there is no sweep of that name, its file holds none, or the overrides name no device.
    """
    asked = searchable(overrides)
    if globs := [word for word in asked if "glob(" in word]:  # of which the cells could not be counted
        raise UsageError(
            f"a sweep takes names, as optimizer=relative,kfac, and not {globs[0]}; `stepscale -m` takes both"
        )
    device = device_of(asked)
    config = read_file(name, device)
    words = [f"task={config['task']}", *shlex.split(config["settings"])]
    grids = [merged(merged(words, shlex.split(grid)), asked) for grid in config["grids"][device]]
    planned = training_plan(grids, config) if "tuning" in config else timing_plan(grids, config["seeds"])
    return {
        "sweep": name,
        **planned,
        "code": environment.code_hash(),
        "torch": torch.__version__,
        "finished": False,
    }


def device_of(overrides: list[str]) -> str:
    """Return the device whose grids are planned: the overrides' ``device``, else what this machine has.

    Raises:
        UsageError: the overrides name no device there can be.
    """
    chosen = dict(word.split("=", 1) for word in overrides if "=" in word)
    return choose_device(chosen.get("device", "auto"))


def read_file(name: str, device: str) -> dict[str, Any]:
    """Read a sweep's file, ours by its name or a user's by its path.

    Raises:
        UsageError: it is not there, or no sweep, or has no grids of the device.
    """
    path = Path(name) if name.endswith(".yaml") else SWEEPS / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"no sweep {name!r}; there are {', '.join(names())}, or name a .yaml file")
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    there = config if isinstance(config, dict) else {}
    if lacking := [key for key in NEEDED if key not in there]:
        raise UsageError(f"{path} is no sweep, it lacks {', '.join(lacking)}; {SWEEPS / 'quick.yaml'} is one")
    if device not in there["grids"]:
        raise UsageError(f"{path} has no grids.{device}, only {', '.join(there['grids'])}; add them, or set device")
    return there


def timing_plan(grids: list[list[str]], seeds: int) -> dict[str, Any]:
    """Plan a multirun for each seed and grid."""
    found = [merged([f"seed={seed}"], grid) for seed in range(seeds) for grid in grids]
    multiruns = [list(words) for words in dict.fromkeys(map(tuple, found))]  # overrides may make grids the same
    return {"multiruns": multiruns, "cells": sum(count_cells(multirun) for multirun in multiruns)}


def training_plan(grids: list[list[str]], config: dict[str, Any]) -> dict[str, Any]:
    """Plan the trials of each point of the grids, and name the points whose best settings are to be trained."""
    points = [list(words) for words in dict.fromkeys(tuple(point) for grid in grids for point in tuning.expand(grid))]
    settings = shlex.split(config["tuning"]["settings"])
    multiruns = [tuning.trials(merged(point, settings), config["tuning"]["factors"]) for point in points]
    found = [multirun for multirun in multiruns if multirun]
    cells = sum(count_cells(multirun) for multirun in found) + config["seeds"] * len(points)
    return {"multiruns": found, "points": points, "seeds": config["seeds"], "cells": cells}


def merged(words: list[str], others: list[str]) -> list[str]:
    """Join two lists of overrides; where both set the same key, the second does."""
    keys = {word.split("=")[0] for word in others}
    return [*(word for word in words if word.split("=")[0] not in keys), *others]


def searchable(overrides: list[str]) -> list[str]:
    """Turn ``--config-dir mine`` into the override that says the same, which a plan can be composed with."""
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for flag in {"--config-dir", "-cd"} & set(words[:-1]):
        place = words.index(flag)
        folder = Path(words[place + 1]).resolve()
        words[place : place + 2] = [f"hydra.searchpath=['file://{folder}']"]
    return words


def count_cells(overrides: list[str]) -> int:
    """How many jobs a multirun of these overrides has."""
    parsed = OverridesParser.create().parse_overrides([o for o in overrides if "=" in o and not o.startswith("-")])
    return math.prod(len(list(o.sweep_iterator())) for o in parsed if o.is_sweep_override())


def unfinished(plan: dict[str, Any]) -> Path | None:
    """Return the latest run's folder if it is an unfinished one of the very same plan."""
    try:
        found = json.loads((LOCAL / "latest" / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return (LOCAL / "latest").resolve() if found == plan else None


def new_folder() -> Path:
    """Make a folder named by the time, and point ``results/local/latest`` at it."""
    path = (LOCAL / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")).resolve()
    path.mkdir(parents=True)
    link = LOCAL / "latest"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    return path


def save_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write ``run.json``, whole or not at all."""
    partial = path / "run.partial"
    partial.write_text(json.dumps(plan, indent=1) + "\n")
    os.replace(partial, path / "run.json")


def run_multiruns(path: Path, multiruns: list[list[str]]) -> bool:
    """Run all multiruns in this process; return whether any of them ended with an error."""
    failed = False
    for overrides in multiruns:
        sys.argv = ["stepscale", "-m", *overrides, f"hydra.sweep.dir='{path}'"]
        try:
            job()
        except SystemExit as end:
            failed |= bool(end.code)
        interrupt.check()
    return failed
