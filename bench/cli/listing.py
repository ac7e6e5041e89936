"""``stepscale list [GROUP]``: the optimizers, models, data and sweeps there are, one line each."""

from __future__ import annotations

import argparse
import itertools
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from stepscale.bench.errors import UsageError

CONF = Path(__file__).parent.parent / "conf"
GROUPS = ("optimizer", "model", "data", "sweep")
PAIR = "stepscale.optimizers.pair"


@dataclass(frozen=True)
class Entry:
    """A file of a group."""

    name: str
    package: str  # of the class that an optimizer's file is about; empty for any other group
    remark: str


def main(words: list[str]) -> None:
    """List every group, or one."""
    parser = argparse.ArgumentParser(prog="stepscale list", description="What can be chosen, one line each.")
    parser.add_argument("group", nargs="?", help=f"one of {', '.join(GROUPS)}; all of them by default")
    group = parser.parse_args(words).group
    if group not in (None, *GROUPS):
        raise UsageError(f"there is no group {group!r}; choose one of {', '.join(GROUPS)}")
    print("\n\n".join("\n".join(lines(name)) for name in ([group] if group else GROUPS)))


def lines(group: str) -> Iterator[str]:
    """Yield a group's title and its entries, those of each package together."""
    yield "stepscale sweep NAME" if group == "sweep" else f"{group}=NAME"
    for package, entries in itertools.groupby(entries_of(group), lambda entry: entry.package):
        if package:
            yield f"  {package}"
        yield from (f"    {entry.name:<24} {entry.remark}" for entry in entries)


def entries_of(group: str) -> list[Entry]:
    """Return the files of a group, by package and by name, those of other packages last."""
    found = [entry_of(path) for path in files(group)]
    return sorted(found, key=lambda entry: (entry.name.startswith("library/"), entry.package, entry.name))


def files(group: str) -> list[Path]:
    """List the files of a group and of its folders."""
    return sorted((CONF / group).rglob("*.yaml"))


def entry_of(path: Path) -> Entry:
    """Say what a file is: by the comment it begins with, else by the first line of what it builds."""
    remark, target = leading_comment(path.read_text(encoding="utf-8")), target_of(path)
    if target is None:
        return Entry(path.stem, "", remark)
    built = pkgutil.resolve_name(target)
    if path.parent.name == "library":  # of another package, and about its update
        return Entry(f"{path.parent.name}/{path.stem}", package_of(path), f"{update_of(path)}: {remark}")
    remark = remark or (built.__doc__ or "").strip().split("\n")[0].replace("``", "")
    name = path.relative_to(CONF).with_suffix("").as_posix()
    if not name.startswith("optimizer/"):
        return Entry(path.stem, "", remark)
    return Entry(
        name.removeprefix("optimizer/"),
        built.__module__.rpartition(".")[0],
        f"{built.__name__}, {update_of(path)}. {remark}",
    )


def leading_comment(text: str) -> str:
    """Return the comment that a file begins with, up to a semicolon, in one line; a directive of Hydra's is none."""
    return comment_parts(text)[0]


def comment_parts(text: str) -> list[str]:
    """Return the comment that a file begins with, as it is parted by semicolons."""
    first = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in first if not line.startswith("# @")).split("; ")


def target_of(path: Path) -> str | None:
    """Return the ``_target_`` that a file is about: its direction's where it pairs one; None where it has none."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = config.get("model", config) if path.parent.name == "model" else config  # one for the whole configuration
    if config.get("_target_") == PAIR:
        config = config["direction"]
    if "_target_" not in config and isinstance(other := config.get("defaults", [None])[0], str):
        return target_of(path.with_name(f"{other}.yaml"))  # the file that this one changes
    found: str | None = config.get("_target_")
    return found


def package_of(path: Path) -> str:
    """Name the package of an optimizer's update; of one of several parts, of the first."""
    update = yaml.safe_load(path.read_text(encoding="utf-8"))["update"]
    target: str = update.get("matrices", update)["_target_"]
    return target.split(".")[0]


def update_of(path: Path) -> str:
    """Name the update of an optimizer's file; of one of several parts, each."""
    update = yaml.safe_load(path.read_text(encoding="utf-8")).get("update")
    if update is None:
        return "its own update"
    parts = [update[part] for part in ("matrices", "rest") if part in update] or [update]
    names = [part["_target_"].split(".")[-1] + " with momentum" * bool(part.get("momentum")) for part in parts]
    return " + ".join(names)
