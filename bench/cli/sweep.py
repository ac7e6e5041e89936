"""``stepscale sweep NAME``: run a sweep, or what is left of it, and write its report.

``NAME`` is a file of ``conf/sweep``, or one of the user's. Further words are Hydra's, for every cell; one that names
what a grid names takes its place.
"""

from __future__ import annotations

import argparse
import sys

from stepscale.bench.cli.running import ANEW, run_plan
from stepscale.bench.runs.plan import names, plan_sweep


def main(words: list[str]) -> None:
    """Run a sweep, or what is left of it, and write its report."""
    parser = argparse.ArgumentParser(prog="stepscale sweep", description="Run a sweep and write its report.")
    parser.add_argument("name", help=f"one of {', '.join(names())}, or a .yaml of your own like theirs")
    further = parser.add_argument("overrides", nargs=argparse.REMAINDER, help="further words for Hydra, for every cell")
    further.required = False  # else argparse asks for them where there is no name
    parser.add_argument(ANEW, action="store_true", help="measure again what is there, into a folder of its own")
    arguments = parser.parse_args([word for word in words if word != ANEW])
    plan = plan_sweep(arguments.name, arguments.overrides)
    sys.exit(run_plan(plan, arguments.overrides, anew=ANEW in words))
