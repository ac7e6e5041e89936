"""A cell's identity: a hash of all that can change its figures, and of nothing else."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import msgspec

from stepscale.bench.records.schema import SCHEMA, Cell, Config, Machine, Task

USED = ("data", "model", "optimizer", "memory_gib", "timeout_s", "flush_denormal")  # of a configuration, by either task
OWN = {Task.TIME: "timing", Task.TRAIN: "training"}  # and by one of them
OURS = "stepscale"
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))


def identity(cell: Cell, config: Config, machine: Machine, versions: list[str], variables: dict[str, str]) -> str:
    """Hash all that a cell's figures depend on; also its record's name.

    That is the cell, the part of the configuration that its task uses, the machine's model (not its host's name), the
    environment that was asked for, and the ``versions``: of the measuring code, of torch, and the ``sources``.
    """
    facts = [SCHEMA, msgspec.to_builtins(cell), _used(config), machine.name, versions, variables]
    return hashlib.sha256(json.dumps(_with_string_keys(facts), sort_keys=True).encode()).hexdigest()[:16]


def sources(config: Config) -> list[str]:
    """Name what a cell is made of beside ours: packages and their versions, hashes of the user's source and data."""
    used = _used(config)
    packages = sorted({target.split(".")[0] for target in targets(used)} - {OURS})
    return [*map(source, packages), *contents(used)]


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


def source(package: str) -> str:
    """Return ``package==version``, or the package's name with a hash of its source and of what that imports.

    Of what cannot be found it is the name alone: building the cell says so.
    """
    files = own_files(package)
    if not files:
        return f"{package}=={_version(package)}"
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + _file_hash(path).encode())
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


def contents(config: Config) -> list[str]:
    """Hash the files that a configuration names; of a folder of data, its files' names, sizes and times."""
    files = [Path(text) for text in sorted(set(_texts(config))) if _is(Path(text), Path.is_file)]
    folders = [Path(text) for text in sorted(set(_texts(config.get("data")))) if _is(Path(text), Path.is_dir)]
    return [*map(_file_hash, files), *map(_listing_hash, folders)]


def _used(config: Config) -> Config:
    """Return the part of a configuration that its task uses."""
    return {key: value for key, value in config.items() if key in (*USED, "task", OWN[Task(config["task"])])}


def _with_string_keys(value: object) -> object:
    """Return plain data whose keys can be sorted; a user's YAML may have numbers for keys."""
    if isinstance(value, dict):
        return {str(key): _with_string_keys(item) for key, item in value.items()}
    return [_with_string_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _texts(value: object) -> Iterator[str]:
    """Yield every text in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _file_hash(path: Path) -> str:
    state = path.stat()
    return file_hash(path.resolve(), state.st_size, state.st_mtime_ns)


def _listing_hash(folder: Path) -> str:
    entries = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    listing = [f"{entry.relative_to(folder)} {entry.stat().st_size} {entry.stat().st_mtime_ns}" for entry in entries]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]


@cache
def file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file's content; once for each state of it that a process meets."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
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
        return {path for root in roots if not installed(root) for path in root.rglob("*.py")}
    path = Path(spec.origin or "").resolve()
    return {path} if path.suffix == ".py" and not installed(path) else set()


def installed(path: Path) -> bool:
    """Whether a file belongs to an installed package or to Python."""
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


@cache
def _version(package: str) -> str:
    names = metadata.packages_distributions().get(package, [package])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return "unknown"
