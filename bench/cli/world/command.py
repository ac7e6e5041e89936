"""``stepscale world key=value ... world=1,2,8``: what a step costs each of many ranks, counted; nothing is timed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

from stepscale.bench.cli.world.count import MEBI, WorldCount, count_world, shared
from stepscale.bench.config import Words, compose_cell, expand, searchable
from stepscale.bench.counting.collectives import KINDS
from stepscale.bench.errors import UsageError
from stepscale.bench.runs.conduct import describe

WORLDS = "1,2,8,64"
USAGE = f"""stepscale world key=value,value ... [world={WORLDS}]

Counts a step of each cell on every rank: FLOPs, their balance, collectives, bytes. On one CPU, without a clock."""


def main(words: Words) -> None:
    """Count, and print a table."""
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return
    worlds = worlds_of(words)
    points = expand(searchable([word for word in words if not word.startswith("world=")]))
    rows: list[dict[str, object]] = []
    for point in points:
        job = describe(compose_cell([*point, "device=cpu"]), "stepscale world", Path())
        job = dataclasses.replace(job, config=shared(job.config))
        counts = [count_world(job, world) for world in worlds]
        rows += [row(job.cell.optimizer, job.cell.dim, count, counts[0]) for count in counts]
    sys.stdout.write(pd.DataFrame(rows).to_markdown(index=False, tablefmt="simple", floatfmt=".4g") + "\n")


def worlds_of(words: Words) -> list[int]:
    """Return the numbers of ranks that words ask for.

    Raises:
        UsageError: one is none.
    """
    asked = [word.removeprefix("world=") for word in words if word.startswith("world=")]
    found = (asked or [WORLDS])[-1].split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in found):
        raise UsageError(f"world must be whole numbers of at least 1, as world={WORLDS}, got world={','.join(found)}")
    return [int(number) for number in found]


def row(optimizer: str, dim: int, count: WorldCount, first: WorldCount) -> dict[str, object]:
    """Make a row of the table."""
    return {
        "optimizer": optimizer,
        "dim": dim,
        "world": count.world,
        "MFLOP of the busiest rank": count.flops_max / 1e6,
        f"of world {first.world}": count.flops_max / first.flops_max,
        "busiest / mean": count.balance,
        **{f"{kind}s": count.calls.get(kind, 0.0) for kind in KINDS.values()},
        "MiB": count.bytes / MEBI,
    }
