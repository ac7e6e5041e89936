"""The regression gate's own quality: how often it cries wolf, and how small a slow-down it finds.

``python -m stepscale.bench.gate_check`` compares the checkout with itself, as it is (A/A) and with slow-downs put into
a copy, on a quiet machine and beside a neighbour that loads one core now and then. Every comparison goes through the same
code as ``stepscale regress``. It takes about 70 minutes on 2 cores, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from stepscale.bench import arms, environment, gate, regression
from stepscale.bench.arms import Arm

OUT = Path("results/gate")
RUNS = {0: 7, 5: 3, 10: 3, 20: 3}  # of 16 benchmarks each, by the size of the slow-down in per cent
REQUIRED = {5: 50, 10: 95, 20: 100}  # per cent found
PLACES = ("direction", "update")
# appended to a copy's optimizers/step.py; waits, busy, for a share of the step's own time
SLOWED = """
import time as _time


def _slowed(self, batch, mark=no_mark):
    started = _time.perf_counter()
    for parameter in self.parameters:
        parameter.grad = None
    self.direction(batch, mark)
    if {place!r} == "direction":
        _wait({share} * (_time.perf_counter() - started + getattr(self, "_update_s", 0.0)))
    middle = _time.perf_counter()
    self.update.step()
    self._update_s = _time.perf_counter() - middle
    if {place!r} == "update":
        _wait({share} * (_time.perf_counter() - started))
    mark("update")


def _wait(seconds):
    until = _time.perf_counter() + seconds
    while _time.perf_counter() < until:
        pass


Paired.__call__ = _slowed
"""
NEIGHBOUR = """
import random, time
while True:
    until = time.perf_counter() + random.uniform(1, 3)
    while time.perf_counter() < until:
        pass
    time.sleep(random.uniform(6, 14))
"""


class Case(NamedTuple):
    """One comparison of all benchmarks."""

    neighbour: bool
    percent: int  # 0: the same code
    place: str
    run: int


def cases() -> list[Case]:
    """Return all comparisons, those on a quiet machine first, every kind early."""
    kinds = [(0, "")] + [(percent, place) for percent in REQUIRED for place in PLACES]
    runs = [(run, percent, place) for percent, place in kinds for run in range(RUNS[percent])]
    return [Case(neighbour, percent, place, run) for neighbour in (False, True) for run, percent, place in sorted(runs)]


def main() -> None:
    """Run what is left of the comparisons, and write the table."""
    parser = argparse.ArgumentParser(prog="stepscale.bench.gate_check", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the results (default {OUT})")
    parser.add_argument("--report", action="store_true", help="write the table of what is there, and measure nothing")
    arguments = parser.parse_args()
    try:
        if not arguments.report:
            check(arguments.out)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
    path = arguments.out / "comparisons.csv"
    if not path.exists():
        sys.exit(f"there are no comparisons in {arguments.out}")
    text = summary(pd.read_csv(path, keep_default_na=False, na_values=[""]))
    (arguments.out / "README.md").write_text(text)
    print(text)


def check(out: Path) -> None:
    """Make the comparisons that are not there yet; each is written when it is done."""
    out.mkdir(parents=True, exist_ok=True)
    path, commit = out / "comparisons.csv", arms.describe(None)
    done = set()
    if path.exists():
        there = pd.read_csv(path, keep_default_na=False)
        if set(there["commit"]) != {commit}:
            sys.exit(
                f"{path} is of {', '.join(sorted(set(there['commit'])))}, this is {commit}; remove it, or give --out"
            )
        done = {Case(*row) for row in there[["neighbour", "percent", "place", "run"]].itertuples(index=False)}
    where = environment.describe(torch.device("cpu")) | {"command": "make gate-check"}
    (out / "environment.json").write_text(json.dumps(where, indent=1) + "\n")
    with tempfile.TemporaryDirectory(prefix="stepscale-gate-check-") as folder:
        base = arms.build(None, Path(folder, "base"))
        for number, case in enumerate(cases(), 1):
            if case in done:
                continue
            table = compare(base, slowed(base, case, Path(folder)), case)
            table.assign(commit=commit, **case._asdict()).to_csv(path, mode="a", header=not path.exists(), index=False)
            verdicts = ", ".join(f"{n} {v}" for v, n in table["verdict"].value_counts().items())
            print(f"[{number}/{len(cases())}] {case}: {verdicts}", flush=True)


def compare(base: Arm, head: Arm, case: Case) -> pd.DataFrame:
    """Compare once, beside a neighbour where the case has one."""
    with neighbour() if case.neighbour else open("/dev/null"):
        measured = gate.measure(base, head, gate.parse(["HEAD"]), lambda done, of: None)
    if measured.interrupted:
        raise KeyboardInterrupt
    return regression.compare(measured.rounds).assign(waited_s=measured.waited_s)


def slowed(base: Arm, case: Case, folder: Path) -> Arm:
    """Copy a version, with the case's slow-down in it."""
    name = f"{case.percent}-{case.place}"
    arm = Arm(f"{base.label}-{name}", base.source, folder / name)
    if not arm.package.exists():
        shutil.copytree(base.package, arm.package)
        if case.percent:
            step = arm.package / "stepscale" / "optimizers" / "step.py"
            step.write_text(step.read_text() + SLOWED.format(place=case.place, share=case.percent / 100))
    return arm


@contextmanager
def neighbour() -> Iterator[None]:
    """Have a process load one core for about a sixth of the time."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def summary(table: pd.DataFrame) -> str:
    """Return the gate's quality as Markdown: one row a kind of comparison."""
    rows = []
    for key, part in table.groupby(["neighbour", "percent", "place"], dropna=False):
        beside, percent, place = bool(key[0]), int(key[1]), str(key[2])
        runs = part.groupby("run")["contended"].sum()
        rows.append(
            {
                "machine": "one core loaded now and then" if beside else "quiet",
                "slow-down": f"{percent} % in the {place}" if percent else "none (A/A)",
                "comparisons": len(part),
                **{v: int((part["verdict"] == v).sum()) for v in ("regressed", "improved", "unchanged", "undecided")},
                "regressed %": 100 * (part["verdict"] == "regressed").mean(),
                "asked for": f"≥ {REQUIRED[percent]} %" if percent else "≤ 1 %",
                "runs with contended rounds": f"{(runs > 0).sum()} of {len(runs)}",
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, floatfmt=".1f") + "\n"


if __name__ == "__main__":
    main()
