"""The oldest releases that ``pyproject.toml`` allows, as a constraints file of pip's: ``python -m tests.oldest``.

What these pull in is the newest, and may warn of how they use it. What does is held back too (``PULLED_IN``), for in
the tests a warning is an error. Needs the standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
NEEDED = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<least>[\d.]+)")
PULLED_IN = ["pyparsing<3.3"]  # which warns of the names that matplotlib 3.8 calls


def oldest(project: Path = PROJECT) -> list[str]:
    """Return a line for each dependency that has a lower bound: ``numpy==1.26.*`` for ``numpy>=1.26``."""
    found = tomllib.loads(project.read_text())["project"]["dependencies"]
    bounds = [match for line in found if (match := NEEDED.match(line))]
    return [f"{match['name']}=={_release(match['least'])}.*" for match in bounds]


def _release(least: str) -> str:
    """Return the first minor release that a bound allows: 10.0 of ``10``."""
    return least if "." in least else f"{least}.0"


if __name__ == "__main__":
    sys.stdout.write("\n".join(oldest() + PULLED_IN) + "\n")
