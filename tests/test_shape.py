"""The limits of the code's shape, and its import contracts, are red where they are broken."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import shape

ROOT = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def tree(root: Path, **texts: str) -> Path:
    """Make a package of as much as is allowed, and of ``texts`` beside it: a module of bench each."""
    discoveries = "".join(f"getattr(x, '{k}')\n" for k in range(shape.DISCOVERED))
    allowed = {
        "anything": "x: Any\n" * (shape.ANY - shape.DICT_OF_ANY) + "y: dict[str, Any]\n" * shape.DICT_OF_ANY,
        "discovering": discoveries,
        "long": "def long():\n    'Not counted.'\n" + "    x = 1\n" * shape.LONGEST,
        **{f"hydra_{k}": "import hydra.utils\n" for k in range(shape.IMPORT_HYDRA)},
    }
    for name, text in (allowed | texts).items():
        path = root / "bench" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for k in range(shape.MOST_MODULES):
        (root / "models").mkdir(exist_ok=True)
        (root / "models" / f"m{k}.py").write_text("")
    return root


def test_what_keeps_the_limits_is_fine(tmp_path: Path) -> None:
    assert shape.complaints(tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("z: Any\n", "bench uses Any 41 times, 40 are the most"),
        ("z: list[dict[str, Any]]\n", r"bench uses dict\[str, Any\] 11 times, 10 are the most"),
        ("hasattr(x, 'y')\n", "bench uses getattr or hasattr 6 times, 5 are the most"),
        ("def f():\n    from omegaconf import OmegaConf\n", "bench/more.py import hydra or omegaconf, 3 modules are"),
        (
            "class A:\n    def much(self):\n" + "        x = 1\n" * 40,
            "bench/more.py:2 much has 41 lines, 40 are",
        ),
    ],
)
def test_what_exceeds_a_limit_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    said = shape.complaints(tree(tmp_path, more=text))
    assert any(re.search(complaint, one) for one in said), said


def test_a_full_folder_is_named(tmp_path: Path) -> None:
    (tree(tmp_path) / "models" / "one_more.py").write_text("")
    assert shape.complaints(tmp_path) == ["models has 11 modules, 10 are the most"]


FORBIDDEN = {
    "models/objective.py": "import stepscale.optimizers.core.facts",
    "bench/records/headline.py": "import stepscale.bench.cli.doctor",
    "bench/analysis/baselines.py": "import torch",
    "optimizers/exact/autodiff.py": "import stepscale.optimizers.fisher.batch_fisher",
}
CONTRACTS = (
    "bench above optimizers above models",
    "the floors of bench",
    "what reads records imports neither torch nor hydra",
    "families of optimizers know nothing of each other",
)


def test_each_import_contract_is_red_where_it_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    for part in shape.PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, tmp_path / "stepscale" / part, ignore=ignored)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    for name, line in FORBIDDEN.items():
        with (tmp_path / "stepscale" / name).open("a") as file:
            file.write(f"{line}\n")
    command = [sys.executable, "-c", LINT]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    for contract in CONTRACTS:
        assert f"{contract} BROKEN" in done.stdout


def test_no_test_file_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) tests\.(\w+\.)*test_", path.read_text(), re.MULTILINE), path
