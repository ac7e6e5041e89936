"""What the harness costs: ``python -m tests.harness --to results/harness/harness.csv``, on a quiet machine.

How long after its command the default sweep and a plan of 1,000 cells show a first figure, and what reports of 1,000
and 10,000 records take. The records are those of a published run, with other seeds and step times moved by up to half a
per cent. Each row is the best of three, since what disturbs can only add to it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from stepscale.bench.machine import description

RUN = Path("results/default")
REPEATS = 3
PLAN = "task: time\nsettings: timing=default\nseeds: 10\ngrids:\n  cpu:\n    - dim=range(64,264,2) optimizer=relative\n"


def stepscale(*words: str) -> list[str]:
    return [sys.executable, "-m", "stepscale.bench", *words]


def first_figure_s(sweep_name: str, cwd: Path) -> float:
    """Seconds from the command of a sweep to its first line with a step's time; it is interrupted then."""
    cwd.mkdir()
    began = time.monotonic()
    words = stepscale("sweep", sweep_name, "device=cpu")
    with subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, text=True, start_new_session=True) as sweep:
        assert sweep.stdout is not None
        if not any(" ms " in line for line in sweep.stdout):
            raise RuntimeError(f"the sweep {sweep_name} ended without a figure")
        took = time.monotonic() - began
        os.killpg(sweep.pid, signal.SIGINT)
        sweep.stdout.read()
    return took


def seconds_of(words: list[str], cwd: Path) -> float:
    began = time.monotonic()
    subprocess.run(words, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def multiplied(run: Path, count: int, target: Path) -> Path:
    """Make a run of so many records of those of another."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("records"))
    (target / "records").mkdir()
    sources = [json.loads(path.read_text()) for path in sorted((run / "records").glob("*.json"))]
    for number in range(count):
        turn, place = divmod(number, len(sources))
        record = json.loads(json.dumps(sources[place]))
        record["cell"]["seed"] = record["config"]["seed"] = record["cell"]["seed"] + 10 * turn
        record["identity"] = f"{number:016x}"
        if record.get("timing"):
            blocks = record["timing"]["blocks"]
            blocks["step_s"] = [step * (1 + 0.01 * (number * 7919 % 13 - 6) / 12) for step in blocks["step_s"]]
        (target / "records" / f"{record['identity']}.json").write_text(json.dumps(record))
    return target


def rows_of(folder: Path) -> list[dict[str, object]]:
    (folder / "plan.yaml").write_text(PLAN)
    found: list[dict[str, object]] = []

    def add(what: str, seconds: list[float], asked_s: float | None = None, peak_mib: float | None = None) -> None:
        found.append({"what": what, "seconds": min(seconds), "asked_s": asked_s, "peak_mib": peak_mib})

    plan = str(folder / "plan.yaml")
    for what, name, asked_s in (("the default sweep", "default", 5), ("a plan of 1,000 cells", plan, 12)):
        seconds = [first_figure_s(name, folder / f"{Path(name).stem}-{turn}") for turn in range(REPEATS)]
        add(f"first figure of {what}", seconds, asked_s)
    imports = [sys.executable, "-c", "import stepscale.bench.cli.report"]
    add("imports of a report", [seconds_of(imports, folder) for _ in range(REPEATS)])
    for count, most_s in ((100, None), (1000, 4), (10_000, 10)):
        run = multiplied(RUN, count, folder / f"run-{count}")
        seconds = [seconds_of(stepscale("report", str(run)), folder) for _ in range(REPEATS)]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # counts ascend: the largest is the last
        add(f"report of {count:,} records", seconds, most_s, peak if count == 10_000 else None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, help="CSV file of the rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame(rows_of(Path(folder)))
    where = description.machine("cpu")
    table = table.assign(cpu=where.cpu, cores=where.cores, torch=torch.__version__)
    print(table.to_string(index=False, float_format="%.3g"))
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.to, index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
