"""Sweeps that are killed, and two at once in one folder: ``python -m tests.reliability.killed_sweeps --count 40``.

A sweep of 40 tiny cells is killed by SIGKILL at a random moment while its cells are measured, its parent alone and its
whole group in turn, and goes on by the same command. Nothing that was recorded may be lost, changed, measured twice
or half there, and no process may be left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from stepscale.bench.records import store
from tests.support.jobs import BRIEF
from tests.support.processes import marked, survivors

CELLS = 40
WORDS = ["-m", "optimizer=relative,layerwise,kfac,adam", "dim=4,8", "seed=0,1,2,3,4", *BRIEF, "into=run"]
WITHIN_S, PATIENCE_S = 2.0, 600.0


def started(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stepscale.bench", *WORDS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def recorded(folder: Path) -> dict[str, str]:
    """Name each record there is, and hash it."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "run/records").glob("*.json")
    }


def faults_of(folder: Path, before: dict[str, str]) -> dict[str, object]:
    """Count what is wrong with a folder that held certain records before."""
    after, (records, damaged) = recorded(folder), store.read_all(folder / "run")
    cells = [(record.cell.optimizer, record.cell.dim, record.cell.seed) for record in records]
    partial = [path for path in (folder / "run" / store.RECORDS).glob("*") if path.suffix != ".json"]
    return {
        "records": len(after), "lost": len(before.keys() - after.keys()),
        "changed": sum(after.get(name, digest) != digest for name, digest in before.items()),
        "doubled": len(cells) - len(set(cells)), "damaged": len(damaged), "partial": len(partial),
    }  # fmt: skip


def await_first_cell(sweep: subprocess.Popen[str]) -> None:
    """Read what a sweep says until it has measured a cell."""
    assert sweep.stdout is not None
    for line in sweep.stdout:
        if line.lstrip().startswith("["):
            return


def killed(folder: Path, number: int, rng: random.Random) -> dict[str, object]:
    """Start or go on with a sweep, kill it within its cells, and look at what is there."""
    mark, environment = marked()
    before, whole_group = recorded(folder), bool(number % 2)
    sweep = started(folder, environment)
    await_first_cell(sweep)
    time.sleep(rng.uniform(0, WITHIN_S))
    (os.killpg if whole_group else os.kill)(sweep.pid, signal.SIGKILL)
    sweep.communicate()
    left = survivors(mark, 10)
    found = faults_of(folder, before)
    found["partial"] = 0  # of what was being written: the next sweep's end looks at them
    return {"try": number, "killed": "group" if whole_group else "parent", "before": len(before), **found,
            "left": len(left), "returncode": sweep.returncode}  # fmt: skip


def killed_sweeps(count: int, rng: random.Random) -> list[dict[str, object]]:
    """Kill a sweep so often; where it comes to its end, another begins."""
    rows: list[dict[str, object]] = []
    while len(rows) < count:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            while len(rows) < count and len(recorded(folder)) < CELLS - 4:
                rows.append(killed(folder, len(rows), rng))
            before, (mark, environment) = recorded(folder), marked()
            sweep = started(folder, environment)
            sweep.communicate(timeout=PATIENCE_S)
            rows[-1] |= {f"end_{what}": number for what, number in faults_of(folder, before).items()}
            rows[-1] |= {"end_left": len(survivors(mark, 10)), "end_returncode": sweep.returncode}
    return rows


def two_sweeps(number: int) -> dict[str, object]:
    """Start two sweeps at once in one folder; the second waits, and says for whom."""
    with tempfile.TemporaryDirectory() as name:
        folder, (mark, environment) = Path(name), marked()
        sweeps = [started(folder, environment) for _ in range(2)]
        said = [sweep.communicate(timeout=PATIENCE_S)[0] for sweep in sweeps]
        measured = sum(line.lstrip().startswith("[") for text in said for line in text.splitlines())
        waited = sum("waiting for process" in text for text in said)
        return {"try": number, "killed": "two at once", "before": 0, **faults_of(folder, {}), "left":
                len(survivors(mark, 10)), "returncode": max(sweep.returncode for sweep in sweeps),
                "measured": measured, "said_why_it_waits": waited}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="kills")
    parser.add_argument("--pairs", type=int, default=3, help="times that two sweeps are started at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, help="CSV file of the rows")
    arguments = parser.parse_args()
    rows = killed_sweeps(arguments.count, random.Random(arguments.seed)) if arguments.count else []
    rows += [two_sweeps(number) for number in range(arguments.pairs)]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    wrong = [name for name in table if name.removeprefix("end_") in
             ("lost", "changed", "doubled", "damaged", "partial", "left")]  # fmt: skip
    totals = table[wrong].sum().astype(int).to_dict()
    print(json.dumps(totals))
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.to, index=False)
    whole = table.get("end_records", pd.Series(dtype=float)).dropna().eq(CELLS).all()
    shared = table.get("measured", pd.Series(dtype=float)).dropna().eq(CELLS).all()
    sys.exit(int(any(totals.values()) or not whole or not shared))


if __name__ == "__main__":
    main()
