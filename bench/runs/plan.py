"""What is to be measured: parts, each a list of cells; planned from a sweep's file or from the words of a multirun.

Of timing, each grid is a part for each seed: optimizers are shuffled anew within the dims, which ascend. Further seeds
are measured only of what is undecided by then. Of training, the trials of each point of the grids are a part; which of
them are tried for longer, and what is then trained on new seeds, is planned from the folder once they are there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast

import msgspec
import torch

from stepscale.bench.atomic import atomic_write
from stepscale.bench.config import CONF, Words, expand, merged, read_yaml, searchable, value_of
from stepscale.bench.errors import BadRecordError, UsageError
from stepscale.bench.machine import code_version
from stepscale.bench.machine.device import choose_device
from stepscale.bench.notes import printable
from stepscale.bench.records import merging, store
from stepscale.bench.records.schema import Config, Task
from stepscale.bench.runs import tuning

SWEEPS = CONF / "sweep"
NEEDED = ("task", "settings", "seeds", "grids")
WANTED = {  # of a sweep's file, by key
    "task": "time or train",
    "settings": "a text of words for every cell, as timing=quick, or ''",
    "seeds": "a whole number of at least 1",
    "further": "a whole number of at least 0",
    "grids": "a list of texts for each device, as cpu: ['dim=64,128 optimizer=adam']",
    "tuning": "settings, a text, and factors, grids of numbers above 0, as [{lr: [0.3, 1, 3]}]",
}
Factor = Annotated[float, msgspec.Meta(gt=0)]
Factors = dict[str, Annotated[list[Factor], msgspec.Meta(min_length=1)]]


class Tuned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a sweep tunes: words for every trial, and factors to what an optimizer's file has."""

    settings: str
    factors: Annotated[list[Factors], msgspec.Meta(min_length=1)]


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sweep's file."""

    task: Task
    settings: str
    seeds: Annotated[int, msgspec.Meta(ge=1)]
    grids: dict[str, list[str]]  # by device
    further: Annotated[int, msgspec.Meta(ge=0)] = 0  # seeds of what is undecided
    tuning: Tuned | msgspec.UnsetType = msgspec.UNSET


class Point(msgspec.Struct, frozen=True):
    """A workload and an optimizer whose best settings are to be trained."""

    words: list[str]
    trials: int | None  # the number of the part that tunes it; None where it has nothing to tune


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run is to measure."""

    name: str
    parts: list[list[list[str]]]  # of cells, each the words that compose it
    points: list[Point] = []  # of training, and how many seeds of each
    seeds: int = 0
    further: list[list[list[str]]] = []  # parts of which only the cells are measured that may decide what is undecided
    faults: list[str] = []  # what could not be planned, and why
    code: str
    torch: str

    @property
    def cells(self) -> int:
        """How many cells it has, those that are planned later too; not those that their results may add."""
        return sum(map(self.count, self.numbers))

    @property
    def numbers(self) -> range:
        """The numbers of its parts: those of cells that are known, then a point's each, then those of further seeds."""
        return range(len(self.parts) + len(self.points) + len(self.further))

    @property
    def rounds(self) -> list[range]:
        """Its parts as they may be measured at the same time: what a later round has is planned by an earlier one's."""
        known, points = len(self.parts), len(self.points)
        further = [range(number, number + 1) for number in self.numbers[known + points :]]
        return [range(known), range(known, known + points), *further]

    def count(self, number: int) -> int:
        """How many cells a part has for sure: of further seeds none."""
        trained = [self.seeds + self.finalists(point) for point in self.points]
        return [*map(len, self.parts), *trained, *(0 for _ in self.further)][number]

    def known(self, number: int) -> list[Words]:
        """Return the words of a part's cells, as far as they are known."""
        return [*self.parts, *([point.words] for point in self.points), *self.further][number]

    @property
    def folder(self) -> str:
        """Name the plan's folder: the same plan of the same code goes on where it stopped, whatever ran since."""
        content = json.dumps(msgspec.to_builtins(self), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def finalists(self, point: Point) -> int:
        """How many trials of a point go on for as long as a final run, where one of these comes to its end."""
        return 0 if point.trials is None else min(tuning.FINALISTS, len(self.parts[point.trials]))


def names() -> list[str]:
    """Return the sweeps there are."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


def plan_sweep(name: str, words: Words) -> Plan:
    """Plan what a sweep is to do on this machine, with further words of the user's for every cell.

    Raises:
        UsageError: there is no sweep of that name, its file holds none, or the words name no device.
    """
    asked = searchable(words)
    device = device_of(asked)
    sweep = read_sweep(name, device)
    settings = [f"task={sweep.task}", *_split(sweep.settings, name)]
    grids = [merged(merged(settings, _split(grid, name)), asked) for grid in sweep.grids[device]]
    if sweep.tuning:
        trial = _split(sweep.tuning.settings, name)
        return _training_plan(_plan(Path(name).stem, [], seeds=sweep.seeds), grids, trial, sweep.tuning.factors)
    seeds, further = sweep.seeds, sweep.further
    seeded = _distinct(merged([f"seed={seed}"], grid) for seed in range(seeds) for grid in grids)
    parts = [in_turns(expand(part)) for part in seeded]
    added = [_distinct(merged([f"seed={seed}"], grid) for grid in grids) for seed in range(seeds, seeds + further)]
    anew = [grids for grids in added if grids[0] not in seeded]
    more = [_distinct(cell for grid in grids for cell in in_turns(expand(grid))) for grids in anew]
    return msgspec.structs.replace(_plan(Path(name).stem, parts), further=more)


def plan_multirun(words: Words) -> Plan:
    """Plan the cells of ``stepscale -m``: a part for each seed, as a sweep has."""
    seeds: dict[str, list[Words]] = {}
    for cell in expand(searchable(words)):
        seeds.setdefault("".join(word for word in cell if word.startswith("seed=")), []).append(cell)
    return _plan("multirun", [in_turns(cells) for cells in seeds.values()])


def in_turns(cells: Iterable[Words]) -> list[Words]:
    """Bring together the cells that differ in their optimizer alone: those that are measured in turns."""
    groups: dict[tuple[str, ...], list[Words]] = {}
    for words in cells:
        shared = tuple(word for word in words if not re.match(r"[+~]*optimizer\b", word))
        groups.setdefault(shared, []).append(words)
    return [words for group in groups.values() for words in group]


def device_of(words: Words) -> str:
    """Return the device whose grids are planned: the words' ``device``, else what this machine has.

    Raises:
        UsageError: the words name no device there can be.
    """
    return choose_device(value_of(words, "device") or "auto")


def read_sweep(name: str, device: str) -> Sweep:
    """Read a sweep's file, ours by its name or a user's by its path.

    Raises:
        UsageError: it is not there, or no sweep, or has no grids of the device; or a value is none of its key.
    """
    path = Path(name) if name.endswith(".yaml") else SWEEPS / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"no sweep {name!r}; there are {', '.join(names())}, or name a .yaml file")
    content = read_yaml(path)
    found = cast(Config, content if isinstance(content, dict) else {})
    if lacking := [key for key in NEEDED if key not in found]:
        raise UsageError(f"{path} is no sweep, it lacks {', '.join(lacking)}; {SWEEPS / 'quick.yaml'} is one")
    try:
        sweep = msgspec.convert(found, Sweep)
    except msgspec.ValidationError as error:
        key = re.search(r"\$\.(\w+)", str(error))
        if key is None:
            raise UsageError(f"{path} is no sweep: {error}; {SWEEPS / 'quick.yaml'} is one") from error
        value = printable(repr(found[key[1]]))
        raise UsageError(f"{path}: {key[1]} must be {WANTED[key[1]]}, got {value}") from error
    if device not in sweep.grids:
        raise UsageError(f"{path} has no grids.{device}, only {', '.join(sweep.grids)}; add them, or set device")
    if not sweep.grids[device]:
        raise UsageError(f"{path} has an empty list of grids.{device}: there is nothing to measure")
    return sweep


def _split(text: str, name: str) -> Words:
    """Split a text of a sweep's file into words, as a shell does."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{name}: {text!r} cannot be read as words: {error}") from error


def save(plan: Plan, path: Path, identities: Iterable[str] | None = None) -> None:
    """Write a plan into its folder; with the ``identities`` of its cells, once all of them are recorded.

    These stay known. Another plan that is there stays beside it, as where folders were merged; one of the same cells by
    other code does not.
    """
    facts: Config = msgspec.to_builtins(plan) | {"cells": plan.cells}
    there = list[Config]()
    with suppress(BadRecordError):  # this one takes its place
        there = merging.plans_of(path)
    if identities is None:
        whole = [one for one in there if "identities" in one and facts.items() <= one.items()]
        identities = whole[0]["identities"] if whole else None
    if identities is not None:
        facts["identities"] = sorted(identities)
    others = [one for one in there if any(one.get(key) != facts[key] for key in ("parts", "points", "further"))]
    with atomic_write(path / store.PLAN) as file:
        file.write(merging.joined([facts, *others]))


def _plan(name: str, parts: list[list[Words]], seeds: int = 0) -> Plan:
    code, version = code_version.code_hash(), str(torch.__version__)
    return Plan(name=name, parts=parts, seeds=seeds, code=code, torch=version)


def _training_plan(bare: Plan, grids: list[Words], trial: Words, factors: list[Factors]) -> Plan:
    """Plan the trials of each point of the grids, and name the points whose best settings are to be trained."""
    points = _distinct(point for grid in grids for point in expand(grid))
    parts, planned, faults = list[list[Words]](), list[Point](), list[str]()
    for point in points:
        try:
            trials = tuning.trials(merged(point, trial), factors)
            cells = None if trials is None else [cell for words in trials for cell in expand(words)]
        except UsageError as error:  # of a pair that does not go together; the others do
            faults.append(f"{' '.join(point)}: {error}")
            continue
        planned.append(Point(point, None if cells is None else len(parts)))
        parts += [] if cells is None else [cells]
    if not planned:
        raise UsageError("; ".join(dict.fromkeys(faults)))
    return msgspec.structs.replace(bare, parts=parts, points=planned, faults=faults)


def _distinct(lists: Iterable[Words]) -> list[Words]:
    """Leave out what overrides have made the same as another."""
    return [list(words) for words in dict.fromkeys(map(tuple, lists))]
