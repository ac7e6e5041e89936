"""The regression gate's own quality: how often it cries wolf, and how small a slow-down it finds.

``python -m stepscale.bench.gate_check`` compares the checkout with itself, as it is (A/A) and with slow-downs put into
a copy, on a quiet machine and beside a neighbour that loads one core now and then. Every comparison goes through the
code of ``stepscale regress``. It takes about 70 minutes on 2 cores, goes on where it was stopped, and exits with 1
where the gate misses what is asked of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd

from stepscale.bench import arms, environment, gate, regression
from stepscale.bench.arms import Arm
from stepscale.bench.errors import BuildError, SessionError

OUT = Path("results/gate")
RUNS = {0: 7, 5: 3, 10: 3, 20: 3}  # of 16 benchmarks each, by the size of the slow-down in per cent
REQUIRED = {5: 50, 10: 95, 20: 100}  # per cent found
ALLOWED = {False: 1, True: 0}  # per cent of A/A regressed, on a quiet machine and with a neighbour
PLACES = ("direction", "update")
MISSED = "**missed**"
# appended to a copy's optimizers/step.py; waits, busy, for a share of the step's own time
SLOWED = """
import time as _time


def _slowed(self, batch, mark=no_mark):
    started = _time.perf_counter()
    if not self.facts.writes_in_place:
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
import os, random, time
parent = os.getppid()
while os.getppid() == parent:
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
    except (BuildError, SessionError) as error:
        print(f"{error}\nthe same command goes on from here", file=sys.stderr)
    try:
        text = page(arguments.out)
    except FileNotFoundError as error:
        sys.exit(f"no comparison has been made yet: {error}")
    (arguments.out / "README.md").write_text(text)
    print(text)
    if MISSED in text:
        sys.exit(1)


def page(out: Path) -> str:
    """Return the gate's quality as a page of Markdown, from the comparisons in a folder."""
    comparisons = pd.read_csv(out / "comparisons.csv", keep_default_na=False)
    where = json.loads((out / "environment.json").read_text())
    same = int(((comparisons["percent"] == 0) & ~comparisons["neighbour"].astype(bool)).sum())
    machine = f"{where['cpu']}, {where['cores']} cores, torch {where['torch']}, Python {where['python']}"
    lines = [
        "# How far the regression gate can be trusted",
        "Each comparison is one benchmark in one run of `stepscale regress`, its default set, as in `comparisons.csv`. "
        f"{machine}, commit {comparisons['commit'].iloc[0]}; `{where['command']}`. Verdicts are drawn anew "
        "from what was measured, by the rule of the code that wrote this page.",
        summary(comparisons),
        "A slow-down waits, busy, for that share of the step's own time, in a copy of the code. The neighbour is a "
        "process that loads one core for 1 to 3 s, then rests for 6 to 14 s. Rounds that fall into its time are set "
        "aside, and none are taken until it rests (for at most a minute a run). Comparisons of one run share its noise "
        f"floor: no alarm in {same} comparisons bounds the rate below {100 * (1 - 0.05 ** (1 / same)):.1f} % "
        "(one-sided, 95 %), were they independent.",
    ]
    return "\n\n".join(lines) + "\n"


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
    where = environment.both("cpu") | {"threads": 1, "command": "make gate-check"}
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
    with neighbour() if case.neighbour else nullcontext():
        measured = gate.measure(base, head, gate.parse([]), lambda done, of: None)
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


def summary(comparisons: pd.DataFrame) -> str:
    """Return a table in Markdown: one row a kind of comparison, verdicts from what was measured."""
    rows = []
    for key, part in regression.judge(comparisons).groupby(["neighbour", "percent", "place"]):
        neighbour, percent, place = cast(tuple[bool, int, str], key)
        found = 100 * (part["verdict"] == "regressed").mean()
        fine = found >= REQUIRED[percent] if percent else found <= ALLOWED[neighbour]
        runs = part.groupby("run").agg(contended=("contended", "sum"), waited_s=("waited_s", "first"))
        rows.append(
            {
                "machine": "with a neighbour" if neighbour else "quiet",
                "slow-down": f"{percent} % in the {place}" if percent else "none (A/A)",
                "comparisons": len(part),
                **{v: int((part["verdict"] == v).sum()) for v in ("regressed", "improved", "unchanged", "undecided")},
                "regressed, %": f"{found:.1f}" if fine else f"{found:.1f} {MISSED}",
                "asked for": f"≥ {REQUIRED[percent]}" if percent else f"≤ {ALLOWED[neighbour]}".replace("≤ 0", "0"),
                "rounds set aside": f"{runs['contended'].mean():.0f} a run",
                "waited": f"{runs['waited_s'].mean():.0f} s a run",
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    main()
