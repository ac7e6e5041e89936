"""What a step costs each of many ranks, free of noise: ``make counts-update`` commits to it, as to ``tests/counts.py``.

``tests/world_counts.json`` holds what is expected. All of it follows from shapes and code, on any machine.
"""

import argparse
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from stepscale.bench.cells.job import Job
from stepscale.bench.cli.world.count import WorldCount, count_world, shared
from stepscale.bench.config import compose_cell
from stepscale.bench.runs.conduct import describe

EXPECTED = Path(__file__).parent / "world_counts.json"
SHORT = ("optimizer.direction.schedule.inverse=4",)  # a period, or counting would take five times as long
OPTIMIZERS = {
    "layerwise": (),
    "relative": (),
    "kfac": (),
    "tnt": SHORT,
    "shampoo": SHORT,
}
WORLDS = (1, 2, 8, 64)
WORDS = ("dim=24", "depth=3", "batch=72")  # the ranks of 64 have one row or two


def job_of(optimizer: str, *words: str) -> Job:
    job = describe(compose_cell([f"optimizer={optimizer}", "device=cpu", *words]), "", Path())
    return dataclasses.replace(job, config=shared(job.config))


@cache
def count(optimizer: str, world: int) -> WorldCount:
    return count_world(job_of(optimizer, *WORDS, *OPTIMIZERS[optimizer]), world)


def counted(optimizer: str) -> list[dict[str, Any]]:
    """Count at each world; rounded, as sums over ranks may be in any order."""
    found = [count(optimizer, world) for world in WORLDS]
    return [
        {
            "optimizer": optimizer,
            **count._asdict(),
            "flops_mean": round(count.flops_mean, 3),
            "balance": round(count.balance, 4),
        }
        for count in found
    ]


def committed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(EXPECTED.read_text())["rows"]
    return found


def main() -> None:
    """Print the counts, or commit to them."""
    parser = argparse.ArgumentParser(description="Count what each rank's step costs.")
    parser.add_argument("--update", action="store_true", help=f"write {EXPECTED.name}: what `make test` then expects")
    rows = [row for optimizer in OPTIMIZERS for row in counted(optimizer)]
    if parser.parse_args().update:
        lines = ",\n".join(json.dumps(row) for row in rows)
        EXPECTED.write_text(f'{{"words": {json.dumps(WORDS)}, "rows": [\n{lines}\n]}}\n')
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".9g"))


if __name__ == "__main__":
    main()
