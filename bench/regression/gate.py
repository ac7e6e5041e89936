"""The regression gate: is a step slower than at a base? ``stepscale regress [BASE]``, or ``make regress BASE=…``.

Runs its own ``benchmarks`` against both versions of the package, in turns. Exit status: 0 fine or undecided, 1
regressed, whatever else failed, 2 error, 3 nothing was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from stepscale.bench import interrupt
from stepscale.bench.errors import SessionError
from stepscale.bench.locks import measuring
from stepscale.bench.machine import cores
from stepscale.bench.machine.device import choose_device
from stepscale.bench.progress import bar
from stepscale.bench.records import store
from stepscale.bench.regression import builds, summary, verdicts
from stepscale.bench.regression.builds import Arm
from stepscale.bench.regression.scratch import scratch
from stepscale.bench.regression.sessions import Session, Watch, conduct
from stepscale.bench.regression.summary import Facts

ERROR = 2


# compared where nobody says which: the default sweep's, and the fused step; all there are take more than ten minutes
USUAL = (
    "layerwise", "inverse", "relative", "relative_momentum", "relative_adam", "relative_fused", "kfac", "sgd_momentum",
    "adam", "naive",
)  # fmt: skip
EVERY = "all"


@dataclass(frozen=True)
class Options:
    """What to compare, and where to say it."""

    base: str | None = None  # a git ref; None for where the checkout left main
    conf: Path | None = None  # a user's own YAML, in their repository; None in this package's
    words: tuple[str, ...] = ()  # of Hydra, for every benchmark, as model=classifier
    optimizers: tuple[str, ...] = ()  # only these; none for ``USUAL``, or all of a user's own; ``all`` for all
    dims: tuple[str, ...] = ()  # instead of each optimizer's two
    threads: int = 1  # of each session
    out: Path = store.LOCAL / "regress"


class Measured(NamedTuple):
    """What the sessions of one comparison told."""

    rounds: pd.DataFrame  # what verdicts.compare takes
    failed: dict[str, dict[str, str]]  # session -> test -> reason, but for those inapplicable
    inapplicable: dict[str, str]  # test -> why its optimizer does not apply to the model, in either version
    code: dict[str, str]  # session -> hash of the package it imported, and of its configurations
    waited_s: float  # for other processes to leave the machine
    interrupted: bool


def run(options: Options, say: Callable[[str], None]) -> tuple[str, int]:
    """Build both versions, measure, judge, write; return the summary and the exit status.

    Raises:
        BuildError: a version cannot be had or built.
        SessionError: a session died or hangs, or both versions are the same files.
        ValueError: one of several optimizers is known to neither version.
    """
    began = time.perf_counter()
    require_pytest()
    with scratch() as folder:
        say("building both versions")
        conf = options.conf and builds.within_repository(options.conf)
        base = builds.build(options.base or builds.merge_base(), folder / "base", conf)
        head = builds.build(None, folder / "head", conf)
        known = base.optimizers() | head.optimizers()
        options = replace(options, optimizers=chosen(options, known))
        unknown = sorted({*options.optimizers} - known)
        if unknown and {*options.optimizers} & known:
            raise ValueError(f"no optimizer {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        measured = NOTHING if unknown else measure_alone(base, head, options, say)
    table = verdicts.compare(measured.rounds)
    for test in {test for tests in measured.failed.values() for test in tests}:
        table.loc[table["optimizer"] + "-" + table["dim"].astype(str) == test, "verdict"] = "failed"
    facts = Facts(
        base=base.label, head=head.label, status=exit_status(table, measured),
        seconds=round(time.perf_counter() - began), threads=options.threads, waited_s=measured.waited_s,
        failed=measured.failed, inapplicable=measured.inapplicable, code=measured.code, optimizers=sorted(known),
        interrupted=measured.interrupted,
    )  # fmt: skip
    text = summary.report(table, facts)
    summary.save(options.out, table, facts, text, measured.rounds)
    return text, facts.status


def chosen(options: Options, known: set[str]) -> tuple[str, ...]:
    """Return the optimizers that are to be compared of those there are; none for all."""
    if options.optimizers == (EVERY,):
        return ()
    if options.optimizers or options.conf is not None:
        return options.optimizers
    return tuple(name for name in USUAL if name in known)


def require_pytest() -> None:
    """See that what the benchmarks run under is installed.

    Raises:
        SessionError: it is not.
    """
    if missing := [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]:
        raise SessionError(f'{", ".join(missing)} is not installed: pip install "stepscale[test]"')


def exit_status(table: pd.DataFrame, measured: Measured) -> int:
    """Return the verdict's status, or that of what kept it from being reached; what regressed is told first."""
    if measured.interrupted:
        return interrupt.STATUS
    status = verdicts.exit_status(table)
    failed = any(name in measured.failed for name in verdicts.HEAD)
    return ERROR if failed and status != verdicts.REGRESSED else status


def measure_alone(base: Arm, head: Arm, options: Options, say: Callable[[str], None]) -> Measured:
    """Measure with a bar of progress, once nobody else measures on this machine."""
    with measuring(choose_device("auto"), f"comparing {head.label} with {base.label}", say), bar("benchmarks") as show:
        return measure(base, head, options, lambda done, of: show(done / of, f"{done}/{of}"))


def measure(base: Arm, head: Arm, options: Options, tell: Callable[[int, int], None]) -> Measured:
    """Run the benchmarks twice against each version, in turns.

    Raises:
        SessionError: a session died or hangs, or both versions are the same files.
    """
    words = [f"--optimizers={','.join(options.optimizers)}", f"--dims={','.join(options.dims)}"]
    words += [f"--word={word}" for word in options.words]
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"} if options.threads > 1 else {}  # or idle threads spin into others' turns
    with ExitStack() as stack:
        sessions = []
        for arm, names in ((base, verdicts.BASE), (head, verdicts.HEAD)):
            for name in names:
                variables = threads | waiting | cores.ALLOCATOR
                session = Session(name, arm.folders(), [*words, *arm.options], variables)
                stack.callback(session.end)
                sessions.append(session)
        watch, interrupted = Watch(sessions, cores.last(options.threads)), False
        try:
            conduct(sessions, options.threads, watch, tell)
        except KeyboardInterrupt:
            interrupted = True
        require_own_files(sessions, base, head)
        rounds = rows_of(sessions, watch, whole_only=interrupted)
        failed, inapplicable = told_apart({session.name: session.failed for session in sessions})
        code = {session.name: session.code for session in sessions}
        return Measured(pd.DataFrame(rounds), failed, inapplicable, code, watch.waited_s, interrupted)


NOTHING = Measured(pd.DataFrame(), {}, {}, {}, 0.0, False)


def told_apart(failed: dict[str, dict[str, str]]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Tell failures (session -> test -> reason) from optimizers that do not apply to the model (test -> reason).

    Those are refused with a ``TypeError``, by every session.
    """
    refused = [{test for test, why in tests.items() if why.startswith("TypeError:")} for tests in failed.values()]
    everywhere = set.intersection(*refused)
    rest = {name: {test: tests[test] for test in tests if test not in everywhere} for name, tests in failed.items()}
    inapplicable = {test: tests[test] for tests in failed.values() for test in sorted(everywhere)}
    return {name: tests for name, tests in rest.items() if tests}, inapplicable


def require_own_files(sessions: list[Session], base: Arm, head: Arm) -> None:
    """See that each session imported its own version's files.

    Raises:
        SessionError: one did not, so that what is compared is not what was asked for.
    """
    own = dict.fromkeys(verdicts.BASE, base) | dict.fromkeys(verdicts.HEAD, head)
    if base.package.resolve() == head.package.resolve():
        raise SessionError(f"base and head are the same files, those in {base.package}")
    for session in sessions:
        folders = [folder.resolve() for folder in own[session.name].folders()]
        for file in session.files:
            if not any(Path(file).resolve().is_relative_to(folder) for folder in folders):
                raise SessionError(f"session {session.name} imported {file}, not the files of {folders[0]}")


def rows_of(sessions: list[Session], watch: Watch, *, whole_only: bool) -> list[dict[str, object]]:
    """Return one row for each round of each session; ``whole_only``: of the tests that every session has finished."""
    rows: list[dict[str, object]] = []
    whole = set.intersection(*(set(session.found) for session in sessions))
    for session in sessions:
        for test, found in session.found.items():
            if whole_only and test not in whole:
                continue
            common = {"optimizer": found.optimizer, "dim": found.dim, "limit_s": found.limit_s, "session": session.name}
            for round_, step_s in enumerate(found.step_s, found.first_round):
                contended = (test, round_) in watch.contended
                rows.append({**common, "round": round_, "step_s": step_s, "contended": contended})
    return rows
