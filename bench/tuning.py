"""Fair tuning: as many trials for every optimizer, chosen by a validation split, and then the runs that count.

A trial is a training run with ``training.trial=true``: it never reads a held-out row. Factors to the learning rate and
the damping that an optimizer's own file gives span a log grid; each optimizer gets the grid of what it has, and all
grids have the same number of points.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from msgspec.structs import asdict
from omegaconf import OmegaConf

from stepscale.bench import tables
from stepscale.bench.errors import UsageError
from stepscale.bench.schema import AXES, Record, Status, Task

CONF = Path(__file__).parent / "conf"

SETTINGS = ("task", "memory_gib", "timeout_s", "label", "timing", "training", "hydra")
NOT_THE_OPTIMIZERS = rf"({'|'.join([*AXES, *SETTINGS])})[.=/@]|[^=]*$"

Words = list[str]


def expand(words: Words) -> list[Words]:
    """Return each point of a grid of Hydra's overrides, ``dim=64,256 data=photos``."""
    parsed = OverridesParser.create().parse_overrides(words)
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [word]
        for word, o in zip(words, parsed, strict=True)
    ]
    return [list(point) for point in itertools.product(*choices)]


def label_of(group: str, choice: str, words: Words) -> str:
    """Return the file chosen for a group, with what the command line changed in it.

    What an optimizer's file takes from elsewhere, as ``frame``, is a change of it too: other cells are no other seeds.
    """
    changes = [word.lstrip("+~") for word in words]
    found = [change.removeprefix(f"{group}.") for change in changes if change.startswith(f"{group}.")]
    if group == "optimizer":
        found += [change for change in changes if not re.match(NOT_THE_OPTIMIZERS, change)]
    return choice + (f"[{','.join(sorted(found))}]" if found else "")


def trials(point: Words, factors: list[dict[str, list[float]]]) -> Words | None:
    """Return the multirun that tunes one optimizer on one workload; None where it has nothing to tune.

    Raises:
        UsageError: the grids differ in size, so that the budget would not be the same.
    """
    sizes = {math.prod(len(values) for values in grid.values()) for grid in factors}
    if len(sizes) > 1:
        raise UsageError(
            f"tuning.factors have grids of {sorted(sizes)} points: the same number for every optimizer is fair"
        )
    defaults = tables.tuned(_composed(point)["optimizer"])
    names = {key.split(".")[-1] for key in defaults}
    grid = next((grid for grid in factors if set(grid) == names), None)
    if grid is None:
        return None
    swept = [
        f"optimizer.{key}=" + ",".join(f"{factor * value:.6g}" for factor in grid[key.split(".")[-1]])
        for key, value in defaults.items()
    ]
    return [*point, *swept, f"label='{_label(point)}'", "training.trial=true", "training.pictures=0"]


def finals(point: Words, records: Iterable[Record], seeds: int) -> Words:
    """Return the multirun that counts: what the trials among ``records`` chose, on seeds that no trial had."""
    best = max(_trials_of(point, records), key=_validation_nats, default=None)
    chosen = tables.tuned(best.config["optimizer"]) if best else {}
    settings = [f"optimizer.{key}={value:.6g}" for key, value in chosen.items()]
    return [*point, *settings, f"label='{_label(point)}'", f"seed={','.join(str(1 + k) for k in range(seeds))}"]


def _validation_nats(record: Record) -> float:
    assert record.training is not None and record.training.final is not None  # it came to its end
    return record.training.final.validation_nats


def _trials_of(point: Words, records: Iterable[Record]) -> list[Record]:
    """Return the trials of one optimizer on one workload that came to their end."""
    config = _composed(point)
    facts = {axis: config[axis] for axis in ("dim", "batch", "depth", "dtype")}
    facts |= {group: _label(point, group) for group in ("optimizer", "model", "data")}
    done = [r for r in records if r.task is Task.TRAIN and r.config["training"]["trial"] and r.status is Status.OK]
    return [record for record in done if facts.items() <= asdict(record.cell).items()]


def _label(point: Words, group: str = "optimizer") -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choice = compose("config", point, return_hydra_config=True).hydra.runtime.choices[group]
    return label_of(group, choice, point)


def _composed(point: Words) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", point), resolve=True)
