"""``stepscale sweep NAME``: run a sweep, or what is left of it, and write its report.

``NAME`` is a file of ``conf/sweep``, or one of the user's. Further words are Hydra's, for every cell; one that names
what a grid names takes its place. ``part=3`` or ``part=0,3`` measures these parts alone: a grid with a seed each.
Measured on different days, or on machines of one kind whose folders are then copied into one, they make one run.
"""

from __future__ import annotations

import argparse
import sys

from stepscale.bench.cli.running import ANEW, run_plan
from stepscale.bench.config import Words, value_of
from stepscale.bench.errors import UsageError
from stepscale.bench.runs.plan import Plan, names, plan_sweep

PART = "part="


def main(words: list[str]) -> None:
    """Run a sweep, or what is left of it, and write its report."""
    parser = argparse.ArgumentParser(prog="stepscale sweep", description="Run a sweep and write its report.")
    parser.add_argument("name", help=f"one of {', '.join(names())}, or a .yaml of your own like theirs")
    further = parser.add_argument("overrides", nargs=argparse.REMAINDER, help="further words for Hydra, for every cell")
    further.required = False  # else argparse asks for them where there is no name
    parser.add_argument(ANEW, action="store_true", help="measure again what is there, into a folder of its own")
    further.help = f"further words for Hydra, for every cell; {PART}0,3 chooses parts, {PART}list lists them"
    arguments = parser.parse_args([word for word in words if word != ANEW])
    asked = [word for word in arguments.overrides if not word.startswith(PART)]
    chosen = [word.removeprefix(PART) for word in arguments.overrides if word.startswith(PART)]
    plan = plan_sweep(arguments.name, asked)
    sys.exit(run_plan(plan, asked, anew=ANEW in words, only=parts_of(plan, chosen[-1]) if chosen else None))


def parts_of(plan: Plan, chosen: str) -> list[int]:
    """Return the numbers of the parts that are chosen, as ``0,3``.

    Raises:
        UsageError: there is none of such a number; the message lists those there are.
    """
    there, wanted = range(len(plan.parts)), chosen.split(",")
    if not all(word.isdigit() and int(word) in there for word in wanted):
        listed = "\n".join(f"  {number}: {_told(cells)}" for number, cells in enumerate(plan.parts))
        raise UsageError(f"part must be a number of these, or several as 0,1; got {chosen!r}\n{listed}")
    return sorted(set(map(int, wanted)))


def _told(cells: list[Words]) -> str:
    """Say which cells a part has: ``seed 0, dim 64 … 256, relative, layerwise: 6 cells``."""
    axes = {name: list(dict.fromkeys(value_of(words, name) or "" for words in cells)) for name in ("dim", "optimizer")}
    dims, seed = axes["dim"], value_of(cells[0], "seed")
    count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
    span = dims[0] if len(dims) == 1 else f"{dims[0]} … {dims[-1]}"
    return f"seed {seed}, dim {span}, {', '.join(axes['optimizer'])}: {count}"
