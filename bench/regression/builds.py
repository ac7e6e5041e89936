"""The two versions of the code that a comparison needs, each built into a folder of its own.

An editable install would silently run the checkout's code for both. The code is this package's own, or that of a user's
repository, which holds optimizers of theirs and a folder of YAML that names them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from stepscale.bench.errors import BuildError

MEASURED = ("bench", "models", "optimizers", "pyproject.toml")  # what a comparison depends on


class Arm(NamedTuple):
    """A version of the code, built."""

    label: str  # its commit, "+changes" if the checkout has any
    source: Path  # a copy of its tree
    package: Path  # where its modules can be imported from
    conf: Path  # the folder with its optimizers
    options: tuple[str, ...] = ()  # of its benchmarks, beside those of both versions
    others: tuple[Path, ...] = ()  # where its modules lie besides, of a user's repository that is no package

    def optimizers(self) -> set[str]:
        """Name the optimizers it has."""
        return {path.stem for path in (self.conf / "optimizer").glob("*.yaml")}

    def folders(self) -> list[Path]:
        """List the places to import from."""
        return [self.package, *self.others]


def build(ref: str | None, into: Path, conf: Path | None = None) -> Arm:
    """Build a git ref, or with None the checkout as it stands, below a folder.

    Args:
        ref: of git.
        into: a folder to make.
        conf: where a user's repository has its YAML, relative to its top; None for this package's own repository.

    Raises:
        BuildError: there is no such ref, or pip cannot build it; its message holds the reason.
    """
    source, package = into / "source", into / "package"
    source.mkdir(parents=True)
    package.mkdir()
    label = describe(ref, MEASURED if conf is None else ())
    if ref is None:
        _copy_checkout(source)
    else:
        _unpack(ref, into / "source.tar", source)
    if conf is None:
        _install(label, source, package, "--no-build-isolation")
        return Arm(label, source, package, source / "bench" / "conf")
    if any((source / name).is_file() for name in ("pyproject.toml", "setup.py")):  # else its modules lie in the tree
        _install(label, source, package)
    return Arm(label, source, package, source / conf, (f"--config-dir={source / conf}",), (source / "src", source))


def _install(label: str, source: Path, package: Path, *options: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *options]
    built = subprocess.run([*pip, "--target", str(package), str(source)], capture_output=True, text=True)
    if built.returncode:
        raise BuildError(f"{label} does not build:\n{_tail(built.stderr)}")


def within_repository(folder: Path) -> Path:
    """Return a folder's place in the git repository of the current one.

    Raises:
        BuildError: it is in none, or in another.
    """
    top = Path(_top())
    if not folder.is_dir() or not folder.resolve().is_relative_to(top.resolve()):
        raise BuildError(f"there is no folder {str(folder)!r} in {top}; --config-dir names the one with your YAML")
    return folder.resolve().relative_to(top.resolve())


def describe(ref: str | None, measured: Collection[str] = MEASURED) -> str:
    """Return the short commit of a ref, or of the checkout with ``+changes`` if it has any in what is measured.

    Raises:
        BuildError: there is no such commit.
    """
    try:
        commit = git("rev-parse", "--verify", "--short=12", f"{ref or 'HEAD'}^{{commit}}")
    except BuildError as error:
        raise BuildError(f"there is no commit {ref or 'HEAD'!r} here; fetch it, or name another") from error
    return commit + ("+changes" if ref is None and git("-C", _top(), "status", "--porcelain", "--", *measured) else "")


def merge_base() -> str:
    """Return the commit at which the checkout left main.

    Raises:
        BuildError: there is no branch main, here or at origin, or no common commit.
    """
    reasons = []
    for main in ("main", "origin/main"):
        try:
            return git("merge-base", "HEAD", main)
        except BuildError as error:
            reasons.append(str(error))
    raise BuildError("\n".join([*reasons, "no branch main to compare with; name a base, as BASE=HEAD~1"]))


def git(*words: str) -> str:
    """Run git in the current folder and return what it prints.

    Raises:
        BuildError: it fails; the message is git's.
    """
    ran = subprocess.run(["git", *words], capture_output=True, text=True)
    if ran.returncode:
        raise BuildError(f"git {' '.join(words)}: {_tail(ran.stderr)}")
    return ran.stdout.strip()


def _top() -> str:
    return git("rev-parse", "--show-toplevel")


def _unpack(ref: str, archive: Path, target: Path) -> None:
    git("-C", _top(), "archive", "--format=tar", f"--output={archive}", ref)
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")


def _copy_checkout(target: Path) -> None:
    """Copy what git tracks or would add; build products stay behind."""
    top = Path(_top())
    names = git("-C", _top(), "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for path in (top / name for name in names if name):
        if path.is_file():
            copy = target / path.relative_to(top)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-40:])
