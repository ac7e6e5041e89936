"""What every command that measures says and does around a run: where it lies, how old it is, and its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.config import Words, compose_cell, value_of
from stepscale.bench.errors import UsageError
from stepscale.bench.records.schema import Status
from stepscale.bench.runs import plan as plans
from stepscale.bench.runs.conduct import conduct, describe
from stepscale.bench.runs.folders import folder_of, point_latest_at
from stepscale.bench.runs.plan import Plan
from stepscale.bench.runs.run import Run

AGAIN = "the same command measures them again"
ANEW = "--anew"  # the word that measures again what is there
UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


def run_plan(plan: Plan, words: Words, *, anew: bool, only: Sequence[int] | None = None) -> int:
    """Measure what is left of a plan, or of some of its parts, and write its report; return the exit status.

    Raises:
        UsageError: the plan's first cell cannot be measured here; nothing has been written.
    """
    given = value_of(words, "hydra.sweep.dir")
    if given and anew:
        raise UsageError(f"{ANEW} makes a folder of its own: leave out hydra.sweep.dir, or name another")
    path = Path(given or folder_of(plan.folder, anew=anew))
    if not plan.cells:
        raise UsageError("there is no cell to measure")
    parts = plan.parts if only is None else [plan.parts[number] for number in only]
    describe(compose_cell(parts[0][0] if parts else plan.points[0].words), "", path)
    interrupt.remember()
    plans.save(plan, path)
    run = Run(path, plan.cells if only is None else sum(map(len, parts)), say, point_latest_at)
    chosen = "" if only is None else f"{run.planned} of them in part {', '.join(map(str, only))}, "
    say(f"{plan.cells} cells, {chosen}{len(run.records)} of them there already, into {path}")
    try:
        faults = conduct(plan, run, typed(), only)
    except KeyboardInterrupt:
        command = "the same command" + f" without {ANEW}" * anew
        sys.stderr.write(f"\ninterrupted; {len(run.records)} cells are recorded, {command} goes on from there\n")
        return interrupt.STATUS
    if not run.measured:
        say(f"all of them were there, the last of {age(run)} ago; {ANEW} measures them again")
    if missing := run.missing():
        faults.append(f"{len(missing)} of {len(run.wanted)} records in {path} are not there any more; {AGAIN}")
    if not faults and only is None:
        plans.save(plan, path, run.wanted)
    return finish(run, faults)


def finish(run: Run, faults: list[str]) -> int:
    """Write a run's report, say what could not be measured, and return the exit status."""
    from stepscale.bench.cli.report import show  # matplotlib and scipy.stats: not before the first cell

    run.refresh()
    for fault in faults:
        print(fault, file=sys.stderr)
    if not run.records:
        raise UsageError("no cell was recorded")
    print()
    show(run.path, run.records.values(), run.complaints)
    good = any(record.status is Status.OK for record in run.records.values())
    return int(bool(faults) or not good)


def say(line: str) -> None:
    """Print a line at once, also where the output is a pipe."""
    print(line, flush=True)


def typed() -> str:
    """Return the command as it was typed."""
    return shlex.join(["stepscale", *sys.argv[1:]])


def age(run: Run) -> str:
    """Say how long ago the last record was written: ``3 hours``."""
    seconds = run.age_s() or 0.0
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= 2 * size), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
