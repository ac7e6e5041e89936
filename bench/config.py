"""Hydra in one place: how a command's words are read, expanded, composed and named."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stepscale.bench.records.schema import AXES

# learning rates follow the dim: lr: ${divide:0.3,${dim}}
OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)

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


def _label(point: Words, group: str = "optimizer") -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choice = compose("config", point, return_hydra_config=True).hydra.runtime.choices[group]
    return label_of(group, choice, point)


def _composed(point: Words) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", point), resolve=True)


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
