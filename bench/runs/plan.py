"""What a sweep is to do: its file, read and planned."""

from __future__ import annotations

import json
import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from stepscale.bench.config import CONF, count_cells, expand, merged, searchable
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import code_version
from stepscale.bench.machine.device import choose_device
from stepscale.bench.runs import tuning

SWEEPS = CONF / "sweep"
LOCAL = Path("results/local")
NEEDED = ("task", "settings", "seeds", "grids")


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
        "code": code_version.code_hash(),
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
    points = [list(words) for words in dict.fromkeys(tuple(point) for grid in grids for point in expand(grid))]
    settings = shlex.split(config["tuning"]["settings"])
    multiruns = [tuning.trials(merged(point, settings), config["tuning"]["factors"]) for point in points]
    found = [multirun for multirun in multiruns if multirun]
    cells = sum(count_cells(multirun) for multirun in found) + config["seeds"] * len(points)
    return {"multiruns": found, "points": points, "seeds": config["seeds"], "cells": cells}


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
