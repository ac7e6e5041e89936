"""``stepscale sweep NAME``: run a sweep, or what is left of it, and write its report.

``NAME`` is a file of ``conf/sweep``, or one of the user's. Further words are Hydra's, for every cell; one that names
what a grid names takes its place. ``into=FOLDER`` says where records go. ``part=3`` or ``part=0,3`` measures these
parts alone: a grid with a seed each; ``part=list`` says which there are. ``hydra/launcher=…`` has a launcher of
Hydra's start the parts, as jobs of a scheduler.
"""

from __future__ import annotations

import argparse
import sys

from stepscale.bench.cli.running import ANEW, INTO, LIST, PART, read, run_plan
from stepscale.bench.runs.plan import names, plan_sweep


def main(words: list[str]) -> None:
    """Run a sweep, or what is left of it, and write its report."""
    parser = argparse.ArgumentParser(prog="stepscale sweep", description="Run a sweep and write its report.")
    parser.add_argument("name", help=f"one of {', '.join(names())}, or a .yaml of your own like theirs")
    further = parser.add_argument("overrides", nargs=argparse.REMAINDER, help="further words for Hydra, for every cell")
    further.required = False  # else argparse asks for them where there is no name
    parser.add_argument(ANEW, action="store_true", help="measure again what is there, into a folder of its own")
    further.help = (
        f"further words for Hydra, for every cell; {INTO}FOLDER names the run's folder, {PART}0,3 chooses parts and "
        f"{PART}{LIST} lists them, hydra/launcher=… has a launcher start them"
    )
    arguments = parser.parse_args([word for word in words if word != ANEW])
    asked = read([*arguments.overrides, *(word for word in words if word == ANEW)])
    plan = plan_sweep(arguments.name, asked.words)
    sys.exit(run_plan(plan, asked, ["sweep", arguments.name, *asked.words]))
