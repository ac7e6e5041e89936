"""The regression gate: is a step slower than at a base? ``stepscale regress [BASE]``, or ``make regress BASE=…``.

Runs head's ``tests/benchmarks`` against both versions of the package, in turns. Exit status: 0 fine or undecided, 1
regressed, 2 error, 3 nothing was measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stepscale.bench import arms, gate_report, interrupt, regression
from stepscale.bench.arms import Arm
from stepscale.bench.errors import BuildError, SessionError
from stepscale.bench.server import ALLOCATOR
from stepscale.bench.turns import Session, Watch, conduct

OUT = Path("results/local/regress")
ERROR = 2


class Measured(NamedTuple):
    """What the sessions of one comparison told."""

    rounds: pd.DataFrame  # what regression.compare takes
    failed: dict[str, dict[str, str]]  # session -> test -> reason
    code: dict[str, str]  # session -> hash of the package it imported
    waited_s: float  # for other processes to leave the machine
    interrupted: bool


def main(words: list[str]) -> None:
    """Compare, print one table, write it for machines and for people, and exit with the verdict's status."""
    arguments = parse(words)
    try:
        gate_report.clear(arguments.out)
        status = run(arguments)
    except (BuildError, SessionError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        gate_report.save_error(arguments.out, str(error), ERROR)
        status = ERROR
    except KeyboardInterrupt:
        print("\ninterrupted before anything was measured", file=sys.stderr)
        status = interrupt.STATUS
    sys.exit(status)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="stepscale regress", description="Compare a checkout's steps with a base's.")
    parser.add_argument("base", nargs="?", help="a git ref; by default where the checkout left main")
    parser.add_argument("--optimizers", default="", help="only these, separated by commas")
    parser.add_argument("--dims", default="", help="these dims instead of each optimizer's two, separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="of each session (default 1: the least disturbed)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the results (default {OUT})")
    arguments = parser.parse_args(words)
    arguments.optimizers, arguments.dims = (
        [part.strip() for part in text.split(",") if part.strip()] for text in (arguments.optimizers, arguments.dims)
    )
    if not all(dim.isdigit() and int(dim) for dim in arguments.dims):
        parser.error(f"dims must be whole numbers separated by commas, got {','.join(arguments.dims)!r}")
    if arguments.threads < 1:
        parser.error(f"threads must be at least 1, got {arguments.threads}")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Build both versions, measure, judge, write; return the exit status.

    Raises:
        BuildError: a version cannot be had or built.
        SessionError: a session died or hangs, or both versions are the same files.
        ValueError: one of several optimizers is known to neither version.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stepscale-regress-") as folder:
        print("building both versions", flush=True)
        base = arms.build(arguments.base or arms.merge_base(), Path(folder, "base"))
        head = arms.build(None, Path(folder, "head"))
        known = base.optimizers() | head.optimizers()
        unknown = sorted({*arguments.optimizers} - known)
        if unknown and {*arguments.optimizers} & known:
            raise ValueError(f"no optimizer {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        measured = NOTHING if unknown else measure(base, head, arguments, gate_report.progress())
    table = regression.compare(measured.rounds)
    for test in {test for tests in measured.failed.values() for test in tests}:
        table.loc[table["optimizer"] + "-" + table["dim"].astype(str) == test, "verdict"] = "failed"
    facts = {
        "base": base.label, "head": head.label, "status": exit_status(table, measured),
        "seconds": round(time.perf_counter() - began), "threads": arguments.threads, "waited_s": measured.waited_s,
        "failed": measured.failed, "code": measured.code, "optimizers": sorted(known),
        "interrupted": measured.interrupted,
    }  # fmt: skip
    summary = gate_report.report(table, facts)
    gate_report.save(arguments.out, table, facts, summary, measured.rounds)
    print(f"{summary}\nwritten to {arguments.out}")
    return int(facts["status"])


def exit_status(table: pd.DataFrame, measured: Measured) -> int:
    """Return the verdict's status, or that of what kept it from being reached."""
    if measured.interrupted:
        return interrupt.STATUS
    if any(name in measured.failed for name in regression.HEAD):
        return ERROR
    return regression.exit_status(table)


def measure(base: Arm, head: Arm, arguments: argparse.Namespace, tell: Callable[[int, int], None]) -> Measured:
    """Run head's benchmarks twice against each version, in turns.

    Raises:
        SessionError: a session died or hangs, or both versions are the same files.
    """
    options = [f"--optimizers={','.join(arguments.optimizers)}", f"--dims={','.join(arguments.dims)}"]
    threads = {f"{library}_NUM_THREADS": str(arguments.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"} if arguments.threads > 1 else {}  # or idle threads spin into others' turns
    with ExitStack() as stack:
        sessions = []
        for arm, names in ((base, regression.BASE), (head, regression.HEAD)):
            for name in names:
                variables = threads | waiting | ALLOCATOR
                session = Session(name, arm.package, head.source, [*options, *arm.options], variables)
                stack.callback(session.end)
                sessions.append(session)
        idle = max(0, (os.cpu_count() or 1) // 2 - arguments.threads)  # two of them may share a real core
        watch, interrupted = Watch(sessions, idle), False
        try:
            conduct(sessions, arguments.threads, watch, tell)
        except KeyboardInterrupt:
            interrupted = True
        require_own_files(sessions, base, head)
        rounds = rows_of(sessions, watch, whole_only=interrupted)
        failed = {session.name: session.failed for session in sessions if session.failed}
        code = {session.name: session.code for session in sessions}
        return Measured(pd.DataFrame(rounds), failed, code, watch.waited_s, interrupted)


NOTHING = Measured(pd.DataFrame(), {}, {}, 0.0, False)


def require_own_files(sessions: list[Session], base: Arm, head: Arm) -> None:
    """See that each session imported its own version's files.

    Raises:
        SessionError: one did not, so that what is compared is not what was asked for.
    """
    own = dict.fromkeys(regression.BASE, base.package) | dict.fromkeys(regression.HEAD, head.package)
    if base.package.resolve() == head.package.resolve():
        raise SessionError(f"base and head are the same files, those in {base.package}")
    for session in sessions:
        for file in session.files:
            if not Path(file).resolve().is_relative_to(own[session.name].resolve()):
                raise SessionError(f"session {session.name} imported {file}, not the files of {own[session.name]}")


def rows_of(sessions: list[Session], watch: Watch, *, whole_only: bool) -> list[dict[str, Any]]:
    """Return one row for each round of each session; ``whole_only``: of the tests that every session has finished."""
    rows = []
    whole = set.intersection(*(set(session.found) for session in sessions))
    for session in sessions:
        for test, info in session.found.items():
            if whole_only and test not in whole:
                continue
            common = {name: info[name] for name in ("optimizer", "dim", "limit_s")} | {"session": session.name}
            for round_, step_s in enumerate(info["step_s"], info["first_round"]):
                rows.append(
                    common | {"round": round_, "step_s": step_s, "contended": (test, round_) in watch.contended}
                )
    return rows
