"""Every script here runs as a user would run it, from the folder that its paths are of."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.config import compose_cell
from stepscale.bench.records import tables
from tests.support.commands import stepscale
from tests.support.jobs import BRIEF, job, logged

HERE = Path(__file__).parent
LIBRARY = {"own_nflows_flow": "nflows", "own_zuko_flow": "zuko"}  # that a script needs, and the project does not
SCRIPTS = sorted(path for path in HERE.glob("*.py") if path.stem not in ("__init__", "test_examples"))
SAID = {  # what a script prints; the library's has its own test
    "own_data": "torch.Size([400, 16]) torch.Size([100, 16]) torch.Size([200, 16])",
    "own_model": "x limit",
    "own_nflows_flow": "",
    "own_optimizer": "after: ",
    "own_zuko_flow": "x limit",
    "pruning": "without the cheapest, the others moved: ",
    "reading_records": "processes differ most at",
    "updates": "SINGD: ",
}


def test_every_script_is_tested() -> None:
    assert {path.stem for path in SCRIPTS} == {"library", *SAID}


@pytest.mark.parametrize("name", SAID)
def test_it_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "updates" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} is older than its Muon")
    pytest.importorskip(LIBRARY.get(name, "torch"), reason=f"{LIBRARY.get(name)} is not installed")
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


WIRED = ["~model.dim", "+model.features=${data.dim}", "+model.hidden=${dim}", "data.dim=4"]
FLOWS = {  # of another library: words, name in tables
    "own_zuko_flow.ZukoNSF": (WIRED, "ZukoNSF[features=data.dim,hidden=dim]"),
    "own_nflows_flow.NflowsMAF": ([], "NflowsMAF"),
}


@pytest.mark.parametrize("target", FLOWS)
@pytest.mark.parametrize("task", ["time", "train"])
def test_another_librarys_flow_is_measured_by_its_own_name(tmp_path: Path, target: str, task: str) -> None:
    """By ``_target_`` and ``loss`` alone, against the products that its loss executes: no step does fewer."""
    pytest.importorskip(LIBRARY[target.split(".")[0]], reason="it is not installed")
    wiring, name = FLOWS[target]
    words = [f"model._target_=tests.examples.{target}", *wiring]
    assert compose_cell(words).names["model"] == name
    brief = ["training.max_steps=20", "training.time_limit_s=null", "training.rows=500", "training.pictures=0"]
    found = measure_cell(logged(job(tmp_path, *words, f"task={task}", *brief, optimizer="adam", dim=16)))
    assert found.status == "ok", found.reason
    if task == "time":
        row = tables.row(found)
        assert row["flops"] >= row["limit_flops"] > 0 and row["ratio"] is not None
    else:
        nats = found.training.curve.validation_nats
        assert nats[-1] > nats[0]


def test_its_name_stands_above_the_table(tmp_path: Path) -> None:
    pytest.importorskip("zuko", reason="it is not installed")
    shutil.copy(HERE / "own_zuko_flow.py", tmp_path)
    words = ["model._target_=own_zuko_flow.ZukoNSF", *WIRED, "optimizer=layerwise", "dim=16,24", "depth=1", *BRIEF]
    done = stepscale(tmp_path, "-m", *words)
    assert done.returncode == 0, done.stderr
    assert "ZukoNSF[features=data.dim,hidden=dim], depth 1, batch 100, photos[dim=4], float32" in done.stdout
