"""The regression gate's own quality: how often it cries wolf, and how small a slow-down it finds.

``stepscale gate-check`` compares the checkout with itself, as it is (A/A) and with its
benchmarks told to slow every step down (``--slow``), on a quiet machine and beside a neighbour that loads one core now
and then. Every comparison goes through the code of ``stepscale regress``. It takes about 70 minutes on 2 cores, goes on
where it was stopped, and exits with 1 where the gate misses what is asked of it, 2 where it could not be measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd

from stepscale.bench.errors import SessionError, UsageError
from stepscale.bench.locks import measuring
from stepscale.bench.machine import description
from stepscale.bench.machine.device import choose_device
from stepscale.bench.regression import builds, gate, verdicts
from stepscale.bench.regression.builds import Arm
from stepscale.bench.regression.scratch import scratch

OUT = Path("results/gate")
COMPARISONS = "comparisons.csv"
RUNS = {0: 7, 5: 3, 10: 3, 20: 3}  # of two dims of each of ``gate.USUAL``, by the slow-down's size in per cent
REQUIRED = {5: 50, 10: 95, 20: 100}  # per cent found
ALLOWED = {False: 1, True: 0}  # per cent of A/A regressed, on a quiet machine and with a neighbour
PLACES = ("direction", "update")
MISSED = "**missed**"
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


def page(out: Path) -> str:
    """Return the gate's quality as a page of Markdown, from the comparisons in a folder."""
    comparisons = read(out / COMPARISONS)
    where = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    same = int(((comparisons["percent"] == 0) & ~comparisons["neighbour"].astype(bool)).sum())
    machine = f"{where['cpu']}, {where['cores']} cores, torch {where['torch']}, Python {where['python']}"
    lines = [
        "# How far the regression gate can be trusted",
        "Each comparison is one benchmark in one run of `stepscale regress`, its default set, as in `comparisons.csv`. "
        f"{machine}, commit {comparisons['commit'].iloc[0]}; `{where['command']}`. Verdicts are drawn anew "
        "from what was measured, by the rule of the code that wrote this page.",
        summary(comparisons),
        "A slow-down waits, busy, for that share of the step's own time. The neighbour is a "
        "process that loads one core for 1 to 3 s, then rests for 6 to 14 s. Rounds that fall into its time are set "
        "aside, and none are taken until it rests (for at most a minute a run). Comparisons of one run share its noise "
        f"floor: no alarm in {same} comparisons bounds the rate below {100 * (1 - 0.05 ** (1 / same)):.1f} % "
        "(one-sided, 95 %), were they independent.",
    ]
    return "\n\n".join(lines) + "\n"


def check(out: Path, say: Callable[[str], None]) -> None:
    """Make the comparisons that are not there yet; each is written when it is done.

    Raises:
        UsageError: those in the folder are of another commit.
        BuildError, SessionError: one cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, commit = out / COMPARISONS, builds.describe(None)
    done = set()
    if path.exists():
        there = read(path)
        if set(there["commit"]) != {commit}:
            commits = ", ".join(sorted(set(there["commit"])))
            raise UsageError(f"{path} is of {commits}, this is {commit}; remove it, or give --out")
        done = {Case(*row) for row in there[["neighbour", "percent", "place", "run"]].itertuples(index=False)}
    where = description.both("cpu") | {"threads": 1, "command": "make gate-check"}
    with scratch() as folder:
        # built twice, for the gate refuses two versions that are the same files
        base, head = (builds.build(None, folder / name) for name in ("base", "head"))
        for number, case in enumerate(cases(), 1):
            if case in done:
                continue
            with measuring(choose_device("auto"), "checking the regression gate", say):
                table = compare(base, slowed(head, case), case)
            (out / "environment.json").write_text(json.dumps(where, indent=1) + "\n")
            table.assign(commit=commit, **case._asdict()).to_csv(path, mode="a", header=not path.exists(), index=False)
            verdicts = ", ".join(f"{n} {v}" for v, n in table["verdict"].value_counts().items())
            say(f"[{number}/{len(cases())}] {case}: {verdicts}")


def read(path: Path) -> pd.DataFrame:
    """Return the comparisons of a file; a commit stays text, though its digits may read as a number (12e456789012)."""
    return pd.read_csv(path, dtype={"commit": str, "place": str}).fillna({"place": ""})


def compare(base: Arm, head: Arm, case: Case) -> pd.DataFrame:
    """Compare once, beside a neighbour where the case has one.

    Raises:
        SessionError: a session died or hangs, or a benchmark failed.
    """
    with neighbour() if case.neighbour else nullcontext():
        measured = gate.measure(base, head, gate.Options(optimizers=gate.USUAL), lambda done, of: None)
    if measured.interrupted:
        raise KeyboardInterrupt
    for session, tests in measured.failed.items():
        test, reason = next(iter(tests.items()))
        raise SessionError(f"{test} failed in session {session}: {reason}")
    return verdicts.compare(measured.rounds).assign(waited_s=measured.waited_s)


def slowed(head: Arm, case: Case) -> Arm:
    """Return a version whose benchmarks put the case's slow-down around every step."""
    if not case.percent:
        return head
    slow = f"{case.place}={case.percent / 100}"
    return head._replace(label=f"{head.label} slowed by {slow}", options=(f"--slow={slow}",))


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
    for key, part in verdicts.judge(comparisons).groupby(["neighbour", "percent", "place"]):
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
