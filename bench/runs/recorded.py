"""Which cells of a plan a folder holds, whichever machine has measured them: what a submitting command can tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from stepscale.bench.cells.identity import identity, sources
from stepscale.bench.config import CellConfig, Words, compose_cell
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import code_version
from stepscale.bench.machine.device import choose_device
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import GROUP, Cell, Config, Machine, Record, Task
from stepscale.bench.runs import tuning
from stepscale.bench.runs.plan import Plan, Point

NOWHERE = Machine(cpu="", cores=0)
UNTOLD = ("threads", "machine")  # axes that the machine which measures has the last word on


class Left(NamedTuple):
    """What a part of a plan lacks."""

    missing: int = 0  # cells without a record
    again: int = 0  # cells whose record is measured again, as of one that failed


class Look(NamedTuple):
    """What a folder holds of some cells."""

    found: list[Record]
    left: Left


class Recorded:
    """The records of this code and torch in a folder, by what was asked for: not by machine and threads.

    Args:
        records: of the folder.
        machine: whose records go before those of another, where both have measured a cell.
    """

    def __init__(self, records: Iterable[Record], machine: str | None = None) -> None:
        self._here = [code_version.code_hash(), str(torch.__version__)]
        self._found: dict[str, Record] = {}
        self._names: dict[tuple[str, ...], str | None] = {}
        self.seen: set[str] = set()  # identities of those that were looked for and found
        self.faults: list[str] = []  # of cells that nobody could compose, and of points that no trial chose for
        self._own = [one for one in records if [one.environment.code, one.environment.torch] == self._here]
        for record in sorted(self._own, key=lambda one: (one.machine.name == machine, one.standing)):
            self._found[self._name(record.cell, record.config, record.sources)] = record

    @cached_property
    def of_machines(self) -> list[Recorded]:
        """The same records, once for each machine, whose own go first; of one machine these alone."""
        names = dict.fromkeys(record.machine.name for record in self._own)
        return [Recorded(self._own, name) for name in names] if len(names) > 1 else [self]

    def look(self, cells: Iterable[Words]) -> Look:
        """Return what is there of cells; what nobody could compose is not missing."""
        found, missing, again = list[Record](), 0, 0
        for words in cells:
            name = self._name_of(words)
            if name in self._found:
                found.append(self._found[name])
                again += not found[-1].settled
            else:
                missing += name is not None
        self.seen |= {record.identity for record in found}
        return Look(found, Left(missing, again))

    def _name_of(self, words: Words) -> str | None:
        if tuple(words) not in self._names:
            self._names[tuple(words)] = None
            try:
                composed = compose_cell(words)
                name = self._name(placed(composed), composed.config, sources(composed.config))
                self._names[tuple(words)] = name
            except UsageError as error:
                self.faults.append(str(error))
        return self._names[tuple(words)]

    def _name(self, cell: Cell, config: Config, made_of: list[str]) -> str:
        """Return the identity that a cell would have on no machine in particular."""
        variables = {"threads": str(config["threads"])}
        anywhere = msgspec.structs.replace(cell, threads=0)
        rounded = store.rounded(config)
        assert isinstance(rounded, dict)
        return identity(anywhere, rounded, NOWHERE, [*self._here, *made_of], variables)


def placed(composed: CellConfig) -> Cell:
    """Return the axes of a composed cell; how many threads it has is for the machine to say."""
    whole: Config = {name: composed.config[name] for name in ("dim", "batch", "depth", "dtype", "seed")}
    return Cell(**whole | composed.names, device=choose_device(str(composed.config["device"])), threads=0)


def state(plan: Plan, path: Path) -> tuple[Recorded, list[Left]]:
    """Return what a folder holds of a plan, and what each part lacks."""
    there = Recorded(store.read_all(path)[0])
    return there, [left(plan, number, there) for number in plan.numbers]


def left(plan: Plan, number: int, recorded: Recorded) -> Left:
    """Say what a part of a plan lacks; further seeds are wanted where something is undecided, and never missing."""
    if number < len(plan.parts):
        return recorded.look(plan.parts[number]).left
    if (place := number - len(plan.parts)) < len(plan.points):
        return _left_of_point(plan, plan.points[place], recorded)
    known = [record for part in (*plan.parts, *plan.further) for record in recorded.look(part).found]
    look = recorded.look(wanted(plan.further[place - len(plan.points)], known)).left
    return Left(again=look.missing + look.again)


def _left_of_point(plan: Plan, point: Point, recorded: Recorded) -> Left:
    """Say what a point lacks, as the machine sees it that lacks least: each has chosen by its own trials."""
    found = {one: _left_by_one(plan, point, one) for one in recorded.of_machines}
    least = min(found, key=lambda one: found[one][0])
    recorded.seen |= least.seen
    lacking, untold = found[least]
    recorded.faults += untold
    return lacking


def _left_by_one(plan: Plan, point: Point, recorded: Recorded) -> tuple[Left, list[str]]:
    """Say what one machine lacks of a point, and why all its trials, which are there, chose nothing."""
    trials = [] if point.trials is None else plan.parts[point.trials]
    short, lacking = recorded.look(trials)
    if lacking.missing:
        return Left(missing=plan.seeds + plan.finalists(point)), []
    seen = list[Left]()

    def measure(cells: list[Words], *_: object) -> tuple[list[Record], list[str]]:
        look = recorded.look(cells)
        seen.append(look.left)
        return look.found, []

    untold = tuning.try_and_train(point.words, short, plan.seeds, measure)
    missing, again = sum(one.missing for one in seen), sum(one.again for one in seen)
    return Left(missing + plan.seeds * bool(untold and missing), again), [] if missing else untold


def wanted(cells: list[Words], records: Collection[Record], machine: str | None = None) -> list[Words]:
    """Return the cells of a further seed that may decide what is undecided; on one ``machine``, or on any."""
    from stepscale.bench.analysis.factors import undecided  # scipy: not before the first cell

    axes = (*GROUP, "dim", "optimizer")
    told = [axis for axis in axes if axis not in UNTOLD]
    open_ = [dict(zip(axes, place, strict=True)) for place in undecided(tables.cells_of(records, Task.TIME))]
    places = {tuple(place[axis] for axis in told) for place in open_ if machine in (None, place["machine"])}
    if not places:
        return []
    return [words for words in cells if _axes(words, told) in places]


def _axes(words: Words, names: list[str]) -> tuple[object, ...]:
    cell = msgspec.structs.asdict(placed(compose_cell(words)))
    return tuple(cell[name] for name in names)
