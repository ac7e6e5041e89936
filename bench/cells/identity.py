"""A cell's identity: a hash of all that can change its figures, and of nothing else."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import msgspec

from stepscale.bench.records.schema import SCHEMA, Cell, Config, Machine, Task

USED = ("data", "model", "optimizer", "memory_gib", "timeout_s")  # of a configuration, by either task
OWN = {Task.TIME: "timing", Task.TRAIN: "training"}  # and by one of them
OURS = "stepscale"
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))


def identity(cell: Cell, config: Config, machine: Machine, code: str, torch_version: str) -> str:
    """Hash all that a cell's figures depend on; also its record's name.

    That is the cell, the part of the configuration that its task uses, the source of every ``_target_`` that is not
    installed and the version of each that is, the content of data files, the machine's model (not its host's name),
    torch and the measuring code.
    """
    config = {key: value for key, value in config.items() if key in (*USED, "task", OWN[Task(config["task"])])}
    facts = [SCHEMA, cell, config, machine.name, code, torch_version, *sources(config), *contents(config.get("data"))]
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()[:16]


def sources(config: object) -> list[str]:
    """Name what a configuration's targets are of: a package and its version, or a hash of the user's own source."""
    packages = sorted({target.split(".")[0] for target in targets(config)} - {OURS})
    return [source(package) for package in packages]


def targets(config: object) -> Iterator[str]:
    """Yield every ``_target_`` of a configuration."""
    if isinstance(config, dict):
        if isinstance(target := config.get("_target_"), str):
            yield target
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


@cache
def source(package: str) -> str:
    """Return ``package==version``, or the package's name with a hash of its source and of what that imports.

    Of what cannot be found it is the name alone: building the cell says so.
    """
    files = own_files(package)
    if not files:
        return f"{package}=={_version(package)}"
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return f"{package}:{digest.hexdigest()[:16]}"


def own_files(package: str) -> set[Path]:
    """List the source files of a package that is not installed, with those of its like that it imports."""
    found: set[Path] = set()
    waiting, met = [package], {OURS}
    while waiting:
        name = waiting.pop()
        if name in met:
            continue
        met.add(name)
        files = _files(name)
        found |= files
        waiting += [imported for path in files for imported in _imports(path)]
    return found


def contents(data: object) -> list[str]:
    """Hash the files that a data configuration names; of a folder, its files' names, sizes and times."""
    if not isinstance(data, dict):
        return []
    paths = [Path(value) for _, value in sorted(data.items()) if isinstance(value, str) and value]
    return [_content(path) for path in paths if _exists(path)]


def _content(path: Path) -> str:
    if path.is_file():
        state = path.stat()
        return file_hash(path.resolve(), state.st_size, state.st_mtime_ns)
    entries = sorted(entry for entry in path.rglob("*") if entry.is_file())
    listing = [f"{entry.relative_to(path)} {entry.stat().st_size} {entry.stat().st_mtime_ns}" for entry in entries]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]


@cache
def file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file's content; once for each state of it that a process meets."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null byte: no path
        return False


def _files(name: str) -> set[Path]:
    """List the files of a top-level module or package, none where it is installed or not to be found."""
    if name in sys.stdlib_module_names:
        return set()
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return set()
    if spec is None:
        return set()
    if spec.submodule_search_locations is not None:
        roots = [Path(place).resolve() for place in spec.submodule_search_locations]
        return {path for root in roots if not _installed(root) for path in root.rglob("*.py")}
    path = Path(spec.origin or "").resolve()
    return {path} if path.suffix == ".py" and not _installed(path) else set()


def _installed(path: Path) -> bool:
    debian = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return debian or any(path.is_relative_to(place) for place in INSTALLED)


def _imports(path: Path) -> set[str]:
    """Name the top-level packages that a source file imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def _version(package: str) -> str:
    names = metadata.packages_distributions().get(package, [package])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return "unknown"
