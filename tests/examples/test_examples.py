"""Every script here runs as a user would run it, from the folder that its paths are of."""

import runpy
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SCRIPTS = sorted(path for path in HERE.glob("*.py") if path.stem not in ("__init__", "test_examples"))
SAID = {  # what a script prints; the library's has its own test
    "own_data": "torch.Size([400, 16]) torch.Size([100, 16]) torch.Size([200, 16])",
    "own_model": "x limit",
    "own_optimizer": "after: ",
    "reading_records": "processes differ most at",
    "updates": "SINGD: ",
}


def test_every_script_is_tested() -> None:
    assert {path.stem for path in SCRIPTS} == {"library", *SAID}


@pytest.mark.parametrize("name", SAID)
def test_it_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "updates" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} is older than its Muon")
    monkeypatch.chdir(HERE.parent.parent)
    monkeypatch.syspath_prepend(HERE)
    runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    assert SAID[name] in capsys.readouterr().out


def test_the_library_trains_a_flow(capsys: pytest.CaptureFixture[str]) -> None:
    made = runpy.run_path(str(HERE / "library.py"))
    before = type(made["flow"])(dim=64, depth=2).loss(made["data"].held_out).item()
    assert float(capsys.readouterr().out.split()[0]) < before - 50


def test_your_own_optimizer_learns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(HERE / "own_optimizer.py"), run_name="__main__")
    before, after = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert after < before - 1


def test_the_page_of_the_optimizers_shows_the_updates() -> None:
    shown = (HERE / "updates.py").read_text().split('"""\n\n', 1)[1]
    assert f"```python\n{shown}```" in (HERE.parent.parent / "optimizers" / "README.md").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 35
