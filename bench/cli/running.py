"""What every command that measures says and does around a run: where it lies, how old it is, and its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepscale.bench import interrupt
from stepscale.bench.config import Words, compose_cell, searchable, value_of
from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
from stepscale.bench.records.schema import Status
from stepscale.bench.runs import plan as plans
from stepscale.bench.runs.conduct import conduct, describe
from stepscale.bench.runs.launch import JOBS, LAUNCHER, launch
from stepscale.bench.runs.plan import Plan, device_of
from stepscale.bench.runs.recorded import state
from stepscale.bench.runs.run import Run, folder_of, point_latest_at

AGAIN = "the same command measures them again"
ON = "the same command goes on from there"
ANEW = "--anew"  # the word that measures again what is there
INTO, PART = "into=", "part="  # the words that name a run's folder, and parts of a plan
LIST = "list"  # in place of parts: says which there are
NO_SAY = ("hydra.sweep.dir=", "hydra.run.dir=", "hydra/sweeper", "hydra.sweeper")  # Hydra's, of what is done here
UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


class Asked(NamedTuple):
    """What the words of a command ask for."""

    words: Words  # for Hydra, of every cell
    launcher: Words  # for Hydra, of the launcher; none where the command measures by itself
    into: str | None
    parts: str | None
    anew: bool


def read(words: Words) -> Asked:
    """Tell apart what words say of cells, of the launcher, and of the run.

    Raises:
        UsageError: a word has no say here; the message names the one that has. Or records can go to no such folder.
    """
    for word in words:
        if word.lstrip("+~").startswith(NO_SAY):
            raise UsageError(f"{word} has no say here: {INTO}FOLDER names where records go, and `-m` expands a grid")
    said = {key: word.removeprefix(key) for key in (INTO, PART) for word in words if word.startswith(key)}
    if INTO in said:
        store.require_folder(Path(said[INTO]))
    launcher = [word for word in words if LAUNCHER.match(word)]
    cells = [word for word in words if word not in launcher and word != ANEW and not word.startswith((INTO, PART))]
    if value_of(cells, "device") in (None, "auto"):  # what is planned here is measured there, and by one plan
        cells = [f"device={device_of([])}", *(word for word in cells if not word.startswith("device="))]
    return Asked(cells, launcher, said.get(INTO), said.get(PART), ANEW in words)


def run_plan(plan: Plan, asked: Asked, command: Words) -> int:
    """Measure what is left of a plan, or of some of its parts, and write its report; return the exit status.

    Where the parts are asked for it prints them, and measures nothing.

    Args:
        plan: of the words that are asked for.
        asked: what else is: parts, a launcher, a folder.
        command: the words that a part's own command begins with.

    Raises:
        UsageError: no cell of the plan can be measured here; nothing has been written.
    """
    if asked.into is not None and asked.anew:
        raise UsageError(f"{ANEW} makes a folder of its own: leave out {INTO}, or name another")
    if not plan.cells:
        raise UsageError("there is no cell to measure")
    if asked.parts == LIST:
        print(listed(plan))
        return 0
    only = None if asked.parts is None else parts_of(plan, asked.parts)
    path = Path(asked.into or folder_of(plan.folder, anew=asked.anew))
    if asked.launcher:
        return by_launcher(plan, asked, [*command, f"{INTO}{path.absolute()}"], path, only)
    return here(plan, asked, path, only)


def here(plan: Plan, asked: Asked, path: Path, only: Sequence[int] | None) -> int:
    """Measure what is left of a plan on this machine; a report is of the whole."""
    require_one(plan, only, lambda words: describe(compose_cell(words), "", path))
    interrupt.remember()
    plans.save(plan, path)
    cells = plan.cells if only is None else sum(map(plan.count, only))
    run = Run(path, cells, say, point_latest_at)
    chosen = "" if only is None else f"{run.planned} of them in part {', '.join(map(str, only))}, "
    say(f"{plan.cells} cells, {chosen}{len(run.records)} of them there already, into {path}")
    try:
        faults = conduct(plan, run, typed(), only)
    except KeyboardInterrupt:
        again = ON.replace("command", f"command without {ANEW}") if asked.anew else ON
        sys.stderr.write(f"\ninterrupted; {len(run.records)} cells are recorded, {again}\n")
        return interrupt.STATUS
    if run.wanted and not run.measured:
        say(f"all of them were there, the last of {age(run)} ago; {ANEW} measures them again")
    if missing := run.missing():
        faults.append(f"{len(missing)} of {len(run.wanted)} records in {path} are not there any more; {AGAIN}")
    if only is not None:
        say(f"{len(run.wanted) - len(missing)} cells are recorded; `stepscale report {path}` shows all that are there")
        return int(told(faults))
    if not faults:
        plans.save(plan, path, run.wanted)
    return finish(run, faults)


def require_one(plan: Plan, only: Sequence[int] | None, check: Callable[[Words], object]) -> None:
    """See that some cell passes the check, wherever it stands in its grid; of the others the run will say why not.

    Raises:
        UsageError: none does; the message is the first one's.
    """
    refused = list[UsageError]()
    for words in (words for number in (plan.numbers if only is None else only) for words in plan.known(number)):
        try:
            check(words)
            return
        except UsageError as error:
            refused.append(error)
    raise refused[0]


def by_launcher(plan: Plan, asked: Asked, command: Words, path: Path, only: Sequence[int] | None) -> int:
    """Have a launcher measure what is left of a plan, round by round; what the folder then holds is what counts."""
    require_one(plan, only, compose_cell)
    interrupt.remember()
    plans.save(plan, path)
    numbers = plan.numbers if only is None else only
    launcher = [*asked.launcher, *(word for word in searchable(asked.words) if word.startswith("hydra.searchpath="))]
    there, lacking = state(plan, path)
    say(f"{plan.cells} cells, {len(there.seen)} of them there already, into {path}")
    try:
        for part_of in plan.rounds:
            todo = [number for number in numbers if number in part_of and any(lacking[number])]
            if not todo:
                continue
            say(f"part {', '.join(map(str, todo))} by {' '.join(asked.launcher)}; what they say is in {path / JOBS}")
            if gave_up := launch(command, todo, launcher, path, say):
                sys.stderr.write(f"the launcher gave up: {gave_up}\n")
            there, lacking = state(plan, path)
            if any(lacking[number].missing for number in todo):
                break
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; jobs that were handed over go on by themselves, and {ON}\n")
        return interrupt.STATUS
    faults = list(dict.fromkeys([*plan.faults, *there.faults]))
    if short := [number for number in numbers if lacking[number].missing]:
        missing = sum(lacking[number].missing for number in short)
        words = f"{missing} of {plan.cells} cells are missing, of part {', '.join(map(str, short))}"
        faults.append(f"{words}: {path / JOBS} says why, and {ON}")
    if only is not None:
        return int(told(faults))
    if not faults:
        plans.save(plan, path, there.seen)
    return finish(Run(path, plan.cells, say, point_latest_at), faults)


def parts_of(plan: Plan, chosen: str) -> list[int]:
    """Return the numbers of the parts that are chosen, as ``0,3``.

    Raises:
        UsageError: there is none of such a number; the message lists those there are.
    """
    wanted = chosen.split(",")
    if not all(word.isdecimal() and int(word) in plan.numbers for word in wanted):
        raise UsageError(f"{PART[:-1]} must be a number of these, or several as 0,1; got {chosen!r}\n{listed(plan)}")
    return sorted(set(map(int, wanted)))


def listed(plan: Plan) -> str:
    """Return a line for each part of a plan: its number, and which cells it has."""
    return "\n".join(f"  {number}: {_part(plan, number)}" for number in plan.numbers)


def _part(plan: Plan, number: int) -> str:
    """Say which cells a part has: ``seed 0, dim 64 … 256, relative, layerwise: 6 cells``."""
    count = "1 cell" if plan.count(number) == 1 else f"{plan.count(number)} cells"
    if (place := number - len(plan.parts)) < 0:
        cells = plan.parts[number]
    elif place < len(plan.points):
        point = plan.points[place]
        after = "" if point.trials is None else f", after part {point.trials}"
        return f"{' '.join(point.words)}, trained as its trials chose{after}: {count}"
    else:
        cells, count = plan.further[place - len(plan.points)], "where something is undecided"
    axes = {name: list(dict.fromkeys(value_of(words, name) or "" for words in cells)) for name in ("dim", "optimizer")}
    dims, seed = axes["dim"], value_of(cells[0], "seed")
    span = dims[0] if len(dims) == 1 else f"{dims[0]} … {dims[-1]}"
    return f"seed {seed}, dim {span}, {', '.join(axes['optimizer'])}: {count}"


def finish(run: Run, faults: list[str]) -> int:
    """Write a run's report, say what could not be measured, and return the exit status."""
    from stepscale.bench.cli.report import show  # matplotlib and scipy: not before the first cell

    run.refresh()
    told(faults)
    if not run.records:
        raise UsageError("no cell was recorded")
    print()
    show(run.path, run.records.values(), run.complaints)
    good = any(record.status is Status.OK for record in run.records.values())
    return int(bool(faults) or not good)


def told(faults: list[str]) -> bool:
    """Print what could not be done; return whether there was anything."""
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


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
