"""What the README shows must run as it stands."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stepscale.bench.regression import self_check
from tests.support.compose import built, composed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_trains_a_flow(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    namespace: dict = {}
    exec(example, namespace)
    before = type(namespace["flow"])(dim=64, depth=2).loss(namespace["data"].held_out).item()
    after = float(capsys.readouterr().out.split()[0])
    assert after < before - 50


def test_the_five_lines_build_an_optimizer() -> None:
    (lines,) = blocks("yaml")
    model = built(composed("dim=4")["model"])
    assert built(OmegaConf.create(lines))(model).direction.bias == "affine"


def test_make_targets_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+-?[a-z]*)\b", README)) - {"it"} <= targets


def test_its_table_of_the_gate_is_the_one_measured() -> None:
    measured = (ROOT / "results" / "gate" / "README.md").read_text()
    table = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(table) > 10 and "\n".join(table) in README
    assert self_check.page(ROOT / "results" / "gate") == measured
