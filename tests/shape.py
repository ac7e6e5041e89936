"""The shape of the code, counted in its syntax trees: ``make lint`` fails where a count exceeds its limit."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("bench", "models", "optimizers")
LONGEST, MOST_MODULES = 40, 10  # lines of a function, and modules of a folder but for __init__ and __main__
ANY, DICT_OF_ANY, DISCOVERED = 40, 10, 5  # in bench: names Any, dict[str, Any], getattr and hasattr
HYDRA = ("hydra", "omegaconf")
IMPORT_HYDRA = 3  # modules of bench that import either; the benchmarks do not count, pytest runs them


def modules(root: Path, part: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the modules of a part of the package with their trees."""
    for path in sorted((root / part).rglob("*.py")):
        yield path.relative_to(root), ast.parse(path.read_text())


def any_names(tree: ast.Module) -> int:
    """Count the uses of ``Any``."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def dicts_of_any(tree: ast.Module) -> int:
    """Count ``dict[str, Any]``."""
    return sum(isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]" for node in ast.walk(tree))


def discoveries(tree: ast.Module) -> int:
    """Count calls of ``getattr`` and ``hasattr``."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sum(isinstance(call, ast.Name) and call.id in ("getattr", "hasattr") for call in calls)


def imports_hydra(tree: ast.Module) -> bool:
    """Whether a module imports Hydra or OmegaConf, anywhere in it."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return any(name.split(".")[0] in HYDRA for name in names)


def long_functions(path: Path, tree: ast.Module) -> list[str]:
    """Name the functions of too many lines, their docstrings not counted."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            lines = (node.end_lineno or 0) - (node.body[0].end_lineno or 0 if documented else node.lineno - 1)
            if lines > LONGEST:
                found.append(f"{path}:{node.lineno} {node.name} has {lines} lines, {LONGEST} are the most")
    return found


def full_folders(root: Path, part: str) -> list[str]:
    """Name the folders of too many modules."""
    found = []
    for folder in [root / part, *(path for path in (root / part).rglob("*") if path.is_dir())]:
        count = sum(path.name not in ("__init__.py", "__main__.py") for path in folder.glob("*.py"))
        if count > MOST_MODULES:
            found.append(f"{folder.relative_to(root)} has {count} modules, {MOST_MODULES} are the most")
    return found


def counts(root: Path) -> list[str]:
    """Say of what bench has too much."""
    bench = [tree for _, tree in modules(root, "bench")]
    counted = {"Any": (any_names, ANY), "dict[str, Any]": (dicts_of_any, DICT_OF_ANY)}
    counted["getattr or hasattr"] = (discoveries, DISCOVERED)
    found = []
    for what, (count, most) in counted.items():
        if (total := sum(map(count, bench))) > most:
            found.append(f"bench uses {what} {total} times, {most} are the most")
    importing = [path for path, tree in modules(root, "bench") if imports_hydra(tree)]
    importing = [path for path in importing if "benchmarks" not in path.parts]
    if len(importing) > IMPORT_HYDRA:
        found.append(f"{', '.join(map(str, importing))} import hydra or omegaconf, {IMPORT_HYDRA} modules are the most")
    return found


def complaints(root: Path = ROOT) -> list[str]:
    """Say what exceeds its limit."""
    found = counts(root)
    for part in PARTS:
        found += full_folders(root, part)
        found += [complaint for path, tree in modules(root, part) for complaint in long_functions(path, tree)]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(complaints()) or 0)
