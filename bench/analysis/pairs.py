"""How two optimizers' step times differ, and how that difference varies from process to process."""

from __future__ import annotations

import itertools
import math
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd

from stepscale.bench.analysis.process_variance import (
    CONFIDENCE,
    NO_PRIOR,
    Spread,
    Spreads,
    half_width,
    moderated,
    usable,
)
from stepscale.bench.records.schema import GROUP

EQUAL = 1.05  # a factor nearer to 1 than that is of no practical interest
IN_TURNS = Spread(0.015, 4)  # prior of the log factor: two starts of the same code differ by up to 2 %
# What seeds that follow each other have in common: measured again minutes later, a factor differs by more than they do,
# as caches, memory and clock rate of a shared machine do not stay the same (`make peers-timer`, results/timer).
DRIFT = Spread(0.011, 18)
PAIR = [*GROUP, "dim", "one", "other"]


class Timed(NamedTuple):
    """What is compared of one cell."""

    seed: int
    turns: str | None
    ratio: float
    step_ms: float
    round_ms: list[float]


class Gap(NamedTuple):
    """Log of one's step time less that of the other, of the processes of one seed."""

    log: float
    error: float  # its standard error, as the rounds tell it; 0 where there are none
    rounds: int  # that both were measured in; 0 where they took no turns
    block: str  # what the two share with others of the same seed


class Pair(NamedTuple):
    """Two optimizers at one dim: a gap for each seed they have in common."""

    one: str
    other: str
    gaps: list[Gap]

    @property
    def turns(self) -> bool:
        return all(gap.rounds for gap in self.gaps)


def pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, dim, one, other), for every two optimizers that have a seed in common.

    ``gap`` is the log of one's step time less that of the other, the mean over ``seeds``. Of processes that took turns
    it is the median over rounds of the gap within a round, which leaves out the machine's drift; of others the gap of
    the ratios to the limit, or of the times where there is no limit. ``rounds`` adds up those of all seeds.

    ``sd`` and ``dof`` are the gap's spread from seed to seed, pooled over all pairs of a dim and moderated by the run.
    Pairs that took turns have a spread apart from the others, with a prior (``IN_TURNS``), so that one seed has one,
    too; it is never less than their own rounds tell. ``drift`` says whether ``DRIFT`` comes on top, which no further
    seed lessens: seeds that took turns are of the same minutes.
    """
    keyed = [(key, int(part["dim"].iloc[0]), _pairs_of(part)) for key, part in usable(cells).groupby([*GROUP, "dim"])]
    by_dim = [(dim, found) for _, dim, found in keyed]
    spread = {turns: _spread(by_dim, turns) for turns in (True, False)}
    rows = []
    for key, dim, found in keyed:
        for pair in found:
            logs, errors, rounds, _ = zip(*pair.gaps, strict=True)
            sd, dof = spread[pair.turns].at(dim)
            own = math.sqrt(np.mean(np.square(errors)))
            known = [float(np.mean(logs)), len(logs), sum(rounds), max(sd, own), dof, pair.turns]
            rows.append([*key, pair.one, pair.other, *known])
    return pd.DataFrame(rows, columns=[*PAIR, "gap", "seeds", "rounds", "sd", "dof", "drift"])


def gap_half_widths(found: pd.DataFrame, comparisons: float = 1, confidence: float = CONFIDENCE) -> np.ndarray:
    """Half the interval of each gap of a table of ``pairs``; arguments as of ``half_width``."""
    halves = []
    for sd, dof, seeds, drift in found[["sd", "dof", "seeds", "drift"]].itertuples(index=False):
        means = [(Spread(sd, dof), seeds), *([(DRIFT, 1)] if drift else [])]
        halves.append(half_width(means, comparisons, confidence))
    return np.array(halves)


def _pairs_of(part: pd.DataFrame) -> list[Pair]:
    """Pair the optimizers of one group and dim."""
    by_name: dict[str, dict[int, Timed]] = {}
    for name, *figures in part[["optimizer", *Timed._fields]].itertuples(index=False):
        by_name.setdefault(name, {})[figures[0]] = Timed(*figures)
    found = []
    for one, other in itertools.combinations(sorted(by_name), 2):
        shared = by_name[one].keys() & by_name[other].keys()
        gaps = [_gap(by_name[one][seed], by_name[other][seed]) for seed in sorted(shared)]
        found += [Pair(one, other, gaps)] if gaps else []
    return found


def _gap(one: Timed, other: Timed) -> Gap:
    """Compare two cells of one seed."""
    if one.turns is not None and one.turns == other.turns:
        # in plain Python: NumPy takes much longer over so few rounds, and a large run has very many pairs
        logs = [math.log(ms / others) for ms, others in zip(one.round_ms, other.round_ms, strict=False)]
        middle = median(logs)
        # the sd of normal values is 1.48 times their median deviation, and a median's error 1.25 times a mean's
        error = 1.4826 * 1.2533 * median([abs(log - middle) for log in logs]) / math.sqrt(len(logs))
        return Gap(middle, error, len(logs), f"{one.turns} {one.seed}")
    limited = one.ratio > 0 and other.ratio > 0  # neither is NaN
    times = (one.ratio, other.ratio) if limited else (one.step_ms, other.step_ms)
    return Gap(math.log(times[0] / times[1]), 0.0, 0, str(one.seed))


def _spread(by_dim: list[tuple[int, list[Pair]]], turns: bool) -> Spreads:
    """Spread of the gaps from seed to seed, of the pairs that took turns or of those that did not."""
    rows = [[dim, *_pooled([pair for pair in found if pair.turns == turns])] for dim, found in by_dim]
    sums = pd.DataFrame(rows, columns=["dim", "squares", "dof"]).groupby("dim").sum()
    return moderated(sums["squares"], sums["dof"], IN_TURNS if turns else NO_PRIOR)


def _pooled(found: list[Pair]) -> tuple[float, int]:
    """Sum of squares and degrees of freedom of the gaps between the pairs of one dim.

    All pairs are looked at, but they hold no more than the optimizers' departures from their own means and from those
    of the seed: of O optimizers and S seeds, (O - 1)(S - 1) degrees of freedom.
    """
    repeats = sum(len(pair.gaps) - 1 for pair in found)
    if not repeats:
        return 0.0, 0
    squares = sum(float(np.var([gap.log for gap in pair.gaps])) * len(pair.gaps) for pair in found)
    names = {name for pair in found for name in (pair.one, pair.other)}
    processes = {(gap.block, name) for pair in found for gap in pair.gaps for name in (pair.one, pair.other)}
    blocks = {block for block, _ in processes}
    dof = max(1, len(processes) - len(blocks) - len(names) + 1)
    return squares / repeats * dof, dof
