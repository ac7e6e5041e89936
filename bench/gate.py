"""The regression gate: is a step slower than at a base? ``stepscale regress [BASE]``, or ``make regress BASE=…``.

Runs head's ``tests/benchmarks`` against both versions of the package, in turns. Exit status: 0 fine or undecided, 1
regressed, 2 error, 3 nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from stepscale.bench import arms, environment, regression
from stepscale.bench.arms import Arm, BuildError
from stepscale.bench.turns import Session, SessionError, Watch, conduct

OUT = Path("results/local/regress")
ERROR, INTERRUPTED = 2, 130
SHOWN = ["optimizer", "dim", "base_ms", "head_ms", "ratio", "low", "high", "resolution", "rounds", "verdict"]


class Measured(NamedTuple):
    """What the sessions of one comparison told."""

    rounds: pd.DataFrame  # what regression.compare takes
    failed: dict[str, dict[str, str]]  # session -> test -> reason
    waited_s: float  # for other processes to leave the machine
    interrupted: bool


def main(words: list[str] | None = None) -> None:
    """Compare, print one table, write it for machines and for people, and exit with the verdict's status."""
    try:
        status = run(parse(words))
    except (BuildError, SessionError, OSError) as error:
        print(error, file=sys.stderr)
        status = ERROR
    sys.exit(status)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="stepscale regress", description="Compare the checkout's steps with a base's."
    )
    parser.add_argument("base", nargs="?", help="a git ref; by default where the checkout left main")
    parser.add_argument("--head", help="a git ref; by default the checkout as it stands")
    parser.add_argument("--optimizers", default="", help="only these, separated by commas")
    parser.add_argument("--dims", default="", help="these dims instead of each optimizer's two, separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="of each session (default 1: the least disturbed)")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for other processes, in all")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the results (default {OUT})")
    arguments = parser.parse_args(words)
    if not all(dim.isdigit() and int(dim) for dim in arguments.dims.split(",") if dim):
        parser.error(f"dims must be whole numbers separated by commas, got {arguments.dims!r}")
    if arguments.threads < 1:
        parser.error(f"threads must be at least 1, got {arguments.threads}")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Build both versions, measure, judge, write; return the exit status.

    Raises:
        BuildError: a version cannot be had or built.
        SessionError: a session died, or both import the same files.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stepscale-regress-") as folder:
        print("building both versions", flush=True)
        base = arms.build(arguments.base or arms.merge_base(), Path(folder, "base"))
        head = arms.build(arguments.head, Path(folder, "head"))
        measured = measure(base, head, arguments, progress())
    table = regression.compare(measured.rounds) if len(measured.rounds) else pd.DataFrame()
    status = regression.exit_status(table) if len(table) else regression.NOTHING_MEASURED
    if measured.interrupted:
        status = INTERRUPTED
    facts = {
        "base": base.label, "head": head.label, "status": status, "seconds": round(time.perf_counter() - began),
        "threads": arguments.threads, "waited_s": measured.waited_s, "failed": measured.failed,
    }  # fmt: skip
    summary = report(table, facts)
    save(arguments.out, table, facts, summary, measured.rounds)
    print(f"{summary}\nwritten to {arguments.out}")
    return status


def measure(base: Arm, head: Arm, arguments: argparse.Namespace, tell: Callable[[int, int], None]) -> Measured:
    """Run head's benchmarks twice against each version, in turns.

    Raises:
        SessionError: a session died, a version's every benchmark failed, or both versions are the same files.
    """
    options = [f"--optimizers={arguments.optimizers}", f"--dims={arguments.dims}"]
    threads = {f"{library}_NUM_THREADS": str(arguments.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    with ExitStack() as stack:
        sessions = []
        for arm, names in ((base, regression.BASE), (head, regression.HEAD)):
            for name in names:
                session = Session(name, arm.package, head.source, options, threads | environment.ALLOCATOR)
                stack.callback(session.end)
                sessions.append(session)
        idle = max(0, environment.available_cores() // 2 - arguments.threads)  # two of them may share a real core
        watch, interrupted = Watch(sessions, idle, arguments.patience), False
        try:
            conduct(sessions, set(sorted(os.sched_getaffinity(0))[-arguments.threads :]), watch, tell)
        except KeyboardInterrupt:
            interrupted = True
        require_own_files(sessions, base, head)
        rows = [row for session in sessions for row in rows_of(session, watch)]
        failed = {session.name: session.failed for session in sessions if session.failed}
        return Measured(pd.DataFrame(rows), failed, watch.waited_s, interrupted)


def require_own_files(sessions: list[Session], base: Arm, head: Arm) -> None:
    """See that each session imported its own version's files.

    Raises:
        SessionError: one did not, so that what is compared is not what was asked for.
    """
    own = dict.fromkeys(regression.BASE, base.package) | dict.fromkeys(regression.HEAD, head.package)
    if base.package.resolve() == head.package.resolve():
        raise SessionError(f"base and head are the same files, those in {base.package}")
    for session in sessions:
        if session.file and not Path(session.file).resolve().is_relative_to(own[session.name].resolve()):
            raise SessionError(f"session {session.name} imported {session.file}, not the files of {own[session.name]}")


def rows_of(session: Session, watch: Watch) -> list[dict[str, Any]]:
    """Return one row for each round that a session measured."""
    rows = []
    for test, info in session.found.items():
        whole = {name: info[name] for name in ("optimizer", "dim", "limit_s")} | {"session": session.name}
        for round_, step_s in enumerate(info["step_s"], info["first_round"]):
            rows.append(whole | {"round": round_, "step_s": step_s, "contended": (test, round_) in watch.contended})
    return rows


def report(table: pd.DataFrame, facts: dict[str, Any]) -> str:
    """Return the verdict in words and the table, as Markdown."""
    lines = [f"### Steps of {facts['head']} against {facts['base']}", "", headline(table, facts), ""]
    if len(table):
        shown = table[SHOWN].assign(resolution=[f"{100 * x:.1f} %" for x in table["resolution"]])
        formats = ("", "", ".3f", ".3f", ".3f", ".3f", ".3f", "", "", "")
        lines += [shown.to_markdown(index=False, floatfmt=formats, missingval="–"), ""]
        lines += [
            f"ratio: head / base, with its 99 % interval (low, high). Noise floor of this run: "
            f"{100 * table['floor'].iloc[0]:.1f} %; resolution: the smallest difference that could have been seen.",
        ]
    for session, tests in facts["failed"].items():
        lines += [f"- {session}: {test} failed: {reason}" for test, reason in tests.items()]
    return "\n".join(lines)


def headline(table: pd.DataFrame, facts: dict[str, Any]) -> str:
    """Say the whole verdict in a sentence or two."""
    if not len(table):
        return "Nothing was measured."
    names = {v: [f"{o}-{d}" for o, d in part[["optimizer", "dim"]].to_numpy()] for v, part in table.groupby("verdict")}
    said = [
        f"{len(names[v])} {v}: {', '.join(names[v])}."
        for v in ("regressed", "improved", "undecided", "new")
        if v in names
    ]
    said += [f"{len(names['unchanged'])} unchanged."] if "unchanged" in names else []
    contended = int((table["contended"] > 0).sum())
    if contended or facts["waited_s"]:
        said.append(
            f"Other processes used the machine: {facts['waited_s']:.0f} s were spent waiting for them, and "
            f"{int(table['contended'].sum())} rounds of {contended} benchmarks were set aside."
        )
    if facts["status"] == INTERRUPTED:
        said.append("Interrupted: benchmarks not listed were not run.")
    return " ".join(said)


def save(out: Path, table: pd.DataFrame, facts: dict[str, Any], summary: str, rounds: pd.DataFrame) -> None:
    """Write the comparison as JSON, Markdown, and its rounds as CSV."""
    out.mkdir(parents=True, exist_ok=True)
    rows = json.loads(table.to_json(orient="records")) if len(table) else []
    where = environment.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    (out / "regress.json").write_text(json.dumps(facts | {"rows": rows, "environment": where}, indent=1) + "\n")
    (out / "regress.md").write_text(summary + "\n")
    rounds.to_csv(out / "rounds.csv", index=False)


def progress() -> Callable[[int, int], None]:
    """Return what shows how far a comparison is, with the time left, where somebody watches."""
    began, shown = time.perf_counter(), [-1]

    def tell(done: int, of: int) -> None:
        if done != shown[0] and os.isatty(sys.stderr.fileno()):
            left = f", {(time.perf_counter() - began) / done * (of - done):.0f} s left" if done else ""
            sys.stderr.write(f"\r\033[K{done}/{of} benchmarks{left}")
            sys.stderr.flush()
        shown[0] = done

    return tell


if __name__ == "__main__":
    main()
