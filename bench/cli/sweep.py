"""``stepscale sweep NAME``: run a sweep, or what is left of it, and write its report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.cli.cell import job
from stepscale.bench.records.schema import Status
from stepscale.bench.runs import tuning
from stepscale.bench.runs.plan import names, new_folder, read_sweep, save_plan, unfinished
from stepscale.bench.runs.run import open_run


def main(words: list[str]) -> None:
    """Run a sweep, or what is left of it, and write its report."""
    parser = argparse.ArgumentParser(prog="stepscale sweep", description="Run a sweep and write its report.")
    parser.add_argument("name", help=f"one of {', '.join(names())}, or a .yaml of your own like theirs")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="further words for Hydra, for every cell")
    arguments = parser.parse_args(words)
    plan = read_sweep(arguments.name, arguments.overrides)
    interrupt.remember()
    path = unfinished(plan) or new_folder()
    save_plan(path, plan)
    run = open_run(path)
    run.planned = plan["cells"]
    print(f"{plan['cells']} cells, {len(run.records)} of them there already, into {path}", flush=True)
    try:
        failed = run_multiruns(path, plan["multiruns"])
        for point in plan.get("points", []):
            failed |= run_multiruns(path, [tuning.finals(point, run.records.values(), plan["seeds"])])
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; {len(run.records)} cells are recorded, the same command goes on from there\n")
        sys.exit(interrupt.STATUS)
    if not failed:
        save_plan(path, plan | {"finished": True})
    if not run.records:
        sys.exit("no cell was recorded")
    from stepscale.bench.cli.report import show  # matplotlib and scipy.stats: not before the first cell

    print()
    show(path, run.records.values(), run.complaints)
    if failed or all(record.status is not Status.OK for record in run.records.values()):
        sys.exit(1)


def run_multiruns(path: Path, multiruns: list[list[str]]) -> bool:
    """Run all multiruns in this process; return whether any of them ended with an error."""
    failed = False
    for overrides in multiruns:
        sys.argv = ["stepscale", "-m", *overrides, f"hydra.sweep.dir='{path}'"]
        try:
            job()
        except SystemExit as end:
            failed |= bool(end.code)
        interrupt.check()
    return failed
