"""How well a factor is known after 20 s: ours, of processes in turns, beside torch's own Timer; ``make peers-timer``.

Ten times each, one after the other in the same minutes: layerwise over relative at dim 256, with one thread. Ours are
four seeds of two processes, whose blocks fill 20 s, told as ``analysis.factors`` tells them. The Timer measures one
optimizer after the other, by ``blocked_autorange`` for as long. Threads and allocator are set alike.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
from pathlib import Path

from stepscale.bench.machine.cores import ALLOCATOR

DIM, BATCH, DEPTH = 256, 100, 2
SEEDS, SECONDS, REPEATS = 4, 20.0, 10
FIELDS = ("factor", "low", "high", "rounds", "timer")


def ours(folder: Path) -> dict[str, float]:
    """Measure as ``stepscale -m`` does, and return the factor with its interval."""
    from stepscale.bench.analysis.factors import factors
    from stepscale.bench.records.tables import load
    from stepscale.bench.runs.conduct import conduct
    from stepscale.bench.runs.plan import plan_multirun
    from stepscale.bench.runs.run import Run

    limit = f"timing.time_limit_s={SECONDS / SEEDS / 2}"
    never = "timing.precision=1e-9"
    seeds = ",".join(map(str, range(SEEDS)))
    words = ["optimizer=layerwise,relative", f"dim={DIM}", f"batch={BATCH}", f"depth={DEPTH}", f"seed={seeds}"]
    plan = plan_multirun([*words, "threads=1", limit, never])
    faults = conduct(plan, Run(folder, plan.cells, lambda line: None), "make peers-timer")
    assert not faults, faults
    found = factors(load(folder)).set_index("optimizer").loc["relative"]
    return {name: float(found[name]) for name in FIELDS[:4]}


def timers() -> float:
    """Return layerwise over relative by torch's Timer, each for half of the time."""
    import torch
    from torch.utils.benchmark import Timer

    from stepscale.models import Flow
    from stepscale.optimizers import Layerwise, Relative, pair

    medians = []
    for direction in (Layerwise, Relative):
        torch.manual_seed(0)
        step = pair(Flow(DIM, DEPTH), direction, lambda parameters: torch.optim.SGD(parameters, lr=1e-6))
        timer = Timer("step(x)", globals={"step": step, "x": torch.randn(BATCH, DIM)}, num_threads=1)
        medians.append(timer.blocked_autorange(min_run_time=SECONDS / 2).median)
    return medians[0] / medians[1]


def main() -> None:
    """Write one row a repeat to the CSV file that is named, and print what they come to."""
    settings = {"OMP_NUM_THREADS": "1"} | ALLOCATOR
    if any(
        os.environ.get(name) != value for name, value in settings.items()
    ):  # the Timer's too: a process starts by them
        os.execve(sys.executable, [sys.executable, "-m", "tests.peers.timer", *sys.argv[1:]], os.environ | settings)
    target = Path(sys.argv[1])
    rows = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(ours(Path(folder)) | {"timer": timers()})
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(summary(rows))


def summary(rows: list[dict[str, float]]) -> str:
    """Say how the ten of each kind vary, and how many intervals hold the mean of ours."""
    own, other = ([row[name] for row in rows] for name in ("factor", "timer"))
    mean = statistics.mean(own)
    held = sum(row["low"] <= mean <= row["high"] for row in rows)
    said = []
    for name, found in (("Stepscale", own), ("Timer", other)):
        sd = 100 * statistics.stdev(found) / statistics.mean(found)
        said.append(f"{name}: mean {statistics.mean(found):.4f}, sd {sd:.2f} %")
    return "; ".join([*said, f"{held} of {len(rows)} intervals hold the mean"])


if __name__ == "__main__":
    main()
