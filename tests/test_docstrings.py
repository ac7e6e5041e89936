"""The examples in docstrings print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

MODULES = [
    "bench.records.tables",
    "bench.timing.one_step",
    "models.flows.flow",
    "optimizers.core.step",
    "optimizers.core.update",
    "optimizers.relative.relative",
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)  # which paths in them are of
    found = doctest.testmod(importlib.import_module(f"stepscale.{module}"))
    assert found.attempted > 1 and found.failed == 0


def test_no_example_is_left_out() -> None:
    root = Path(__file__).parent.parent
    paths = [path for part in ("bench", "models", "optimizers") for path in (root / part).rglob("*.py")]
    shown = {path.relative_to(root) for path in paths if ">>> " in path.read_text()}
    assert shown == {Path(*module.split(".")).with_suffix(".py") for module in MODULES}
