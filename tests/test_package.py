"""What is installed is all that the package's folders hold."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("bench", "models", "optimizers")
BUILT = {"__pycache__"}


def held() -> set[str]:
    """Name every file of the package's folders but for their READMEs, as an installed one is named."""
    files = [path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file() and path.suffix != ".md"]
    return {f"stepscale/{path.relative_to(ROOT)}" for path in files if BUILT.isdisjoint(path.parts)}


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for part in PARTS for path in (ROOT / part).rglob("__init__.py")]
    assert sorted(listed) == sorted(f"stepscale.{'.'.join(folder.parts)}" for folder in found)


def test_every_module_is_of_a_package() -> None:
    lonely = {
        path.relative_to(ROOT)
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert not lonely


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build a wheel of a copy, for a build leaves products in its tree; return its files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns(*BUILT))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_every_file(wheel: set[str]) -> None:
    missing = held() - wheel
    assert not missing
    assert "stepscale/bench/regression/benchmarks/pytest.ini" in wheel, "what stepscale regress runs"


def test_a_wheel_holds_nothing_else(wheel: set[str]) -> None:
    assert {name for name in wheel if ".dist-info/" not in name} == held()
