"""What a configuration or a record names as its ``_target_`` can be imported, today's and those of published runs."""

import json
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parent.parent


def targets(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        yield from (value for key, value in config.items() if key == "_target_")
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    for part in parts:
        yield from targets(part)


@cache
def of_records() -> list[str]:
    paths = ROOT.glob("results/*/records/*.json")
    return sorted({target for path in paths for target in targets(json.loads(path.read_text())["config"])})


def of_files() -> list[str]:
    paths = [*(ROOT / "bench" / "conf").rglob("*.yaml"), *(ROOT / "tests" / "peers").rglob("*.yaml")]
    return sorted({target for path in paths for target in targets(yaml.safe_load(path.read_text()))})


@pytest.mark.parametrize("target", of_files())
def test_a_target_of_a_file_is_there(target: str) -> None:
    if target == "torch.optim.Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} is older than its Muon")
    assert callable(pkgutil.resolve_name(target))


def test_every_target_of_a_published_record_is_there() -> None:
    assert len(of_records()) > 20
    for target in of_records():
        assert callable(pkgutil.resolve_name(target)), target
