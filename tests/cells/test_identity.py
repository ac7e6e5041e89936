"""A cell's identity: what can change its figures changes it, and nothing else does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from stepscale.bench.cells import identity as module
from stepscale.bench.cells.identity import identity
from stepscale.bench.machine import code_version
from tests.support.synthetic import MACHINE, cell

CELL = cell("mine", 64, 0)
CONFIG: dict[str, Any] = {
    "task": "time", "data": {"_target_": "stepscale.bench.data.photos"}, "model": {"_target_": "stepscale.models.Flow"},
    "optimizer": {"update": {"_target_": "torch.optim.SGD", "lr": 0.1}}, "timing": {"precision": 0.01},
    "training": {"trial": False}, "memory_gib": None, "timeout_s": None, "label": None, "frame": "relative",
}  # fmt: skip


def of(cell: Any = CELL, config: Any = CONFIG, machine: Any = MACHINE, code: str = "code", **variables: str) -> str:
    return identity(cell, config, machine, [code, *module.sources(config)], variables)


def test_what_can_change_a_figure_changes_it() -> None:
    others = [
        of(replace(CELL, dim=65)),
        of(replace(CELL, threads=1)),
        of(config=CONFIG | {"optimizer": {"update": {"_target_": "torch.optim.SGD", "lr": 0.2}}}),
        of(config=CONFIG | {"timing": {"precision": 0.02}}),
        of(config=CONFIG | {"timeout_s": 5}),
        of(machine=replace(MACHINE, cpu="another")),
        of(machine=replace(MACHINE, cores=64)),
        of(machine=replace(MACHINE, gpu="H100", gpus=1)),
        of(code="other code"),
        of(ATEN_CPU_CAPABILITY="avx2"),
        of(config=CONFIG | {"optimizer": {"bound": float("inf")}}),
        of(config=CONFIG | {"optimizer": {"bound": None}}),
    ]
    assert len({of(), *others}) == 1 + len(others)


def test_what_cannot_change_a_figure_does_not() -> None:
    assert of(config=CONFIG | {"training": {"trial": True}}) == of(), "a timed cell does not train"
    assert of(config=CONFIG | {"label": "a name", "frame": "euclidean"}) == of(), "it is in what uses it"
    assert of(machine=replace(MACHINE, host="elsewhere", driver="555")) == of()


def test_a_training_cell_does_not_depend_on_timing() -> None:
    train = CONFIG | {"task": "train"}
    assert of(config=train | {"timing": {"precision": 0.5}}) == of(config=train)
    assert of(config=train | {"training": {"trial": True}}) != of(config=train)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's optimizer that imports a module of theirs."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_optimizer.py").write_text("import torch\nfrom their_maths import rate\n")
    (tmp_path / "their_maths.py").write_text("rate = 1\n")
    yield tmp_path
    for name in ("their_optimizer", "their_maths"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("edited", ["their_optimizer.py", "their_maths.py"])
def test_an_edited_optimizer_is_another(own: Path, edited: str) -> None:
    config = CONFIG | {"optimizer": {"_target_": "their_optimizer.Mine"}}
    before = of(config=config)
    assert of(config=config) == before
    with (own / edited).open("a") as file:
        file.write("# edited\n")
    assert of(config=config) != before


def test_an_installed_package_counts_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.sources(CONFIG) == [f"torch=={module.metadata.version('torch')}"]


def test_a_target_that_cannot_be_found_is_for_building_to_name() -> None:
    assert of(config=CONFIG | {"model": {"_target_": "nowhere.Flow"}})


def test_a_data_file_counts_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    config = CONFIG | {"data": {"_target_": "stepscale.bench.data.user_file.load", "path": str(path)}}
    path.write_bytes(b"0123")
    before = of(config=config)
    path.write_bytes(b"0124")  # of the same size, and perhaps within the same tick of the clock
    os.utime(path, ns=(1, 1))
    assert of(config=config) != before
    path.write_bytes(b"0123")
    assert of(config=config) == before


# what a cell's process loads of ours and cannot change a figure by
HARMLESS = {
    "atomic",
    "errors",
    "notes",
    "progress",
    "__init__",
    "records/schema",
    "records/operations",
    "records/ranges",
    "records/store",
    "records/__init__",
}


def test_measuring_code_is_what_a_cells_process_loads() -> None:
    code = (
        "import sys, stepscale.bench.cells.process\n"
        "print(*(m.__file__ for name, m in sys.modules.items() if name.startswith('stepscale.') and m.__file__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {Path(file).resolve().relative_to(code_version.PACKAGE.resolve()) for file in done.stdout.split()}
    measuring = {path.relative_to(code_version.PACKAGE) for path in code_version.measuring_files()}
    rest = {path.relative_to("bench").with_suffix("").as_posix() for path in loaded - measuring}
    assert rest <= HARMLESS


@pytest.mark.parametrize(
    ("file", "same"),
    [
        ("bench/report/style.py", True),
        ("bench/analysis/cubic_share.py", True),
        ("bench/conf/sweep/quick.yaml", True),
        ("bench/timing/time_step.py", False),
        ("optimizers/relative/relative.py", False),
        ("models/flows/flow.py", False),
    ],
)
def test_a_comment_in_a_plot_throws_no_run_away(
    file: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_version.code_hash()
    for part in ("bench", "models", "optimizers"):
        shutil.copytree(code_version.PACKAGE / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_version, "PACKAGE", tmp_path)
    assert code_version.code_hash.__wrapped__() == before
    with (tmp_path / file).open("a") as source:
        source.write("# a comment\n")
    assert (code_version.code_hash.__wrapped__() == before) is same


def test_numbers_may_be_keys_of_a_users_file() -> None:
    assert of(config=CONFIG | {"optimizer": {"schedule": {0: 0.1, 100: 0.01, "later": 0.001}}}) != of()


def test_files_count_wherever_a_configuration_names_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(b"0123")
    deep = {"data": {"files": [str(path)]}, "model": {"weights": str(path)}}
    for part, value in deep.items():
        assert module.contents({part: value}) == module.contents({"data": {"path": str(path)}}) != []
    assert module.contents({"model": {"folder": str(tmp_path)}}) == [], "of data alone: anything may be a folder's name"
