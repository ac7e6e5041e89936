"""Configurations as the product composes them, and what they build."""

from typing import Any

from hydra.utils import instantiate

from stepscale.bench.config import CONF, compose_cell
from stepscale.bench.records.schema import Config

# steps whose work goes by the data, told to do as much at every dim
OF_ONE_LENGTH = {"hessian_free": ["optimizer.iterations=1", "optimizer.damping=1e4"]}


def named(group: str) -> list[str]:
    """Name the files of a group, as ``optimizer``."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*words: str) -> Config:
    """Return a cell's configuration, resolved."""
    return compose_cell(list(words)).config


def built(part: Config) -> Any:
    """Build what a part of a configuration names."""
    return instantiate(part, _convert_="all")
