"""Turns are granted in lockstep, contended ones noted; sessions that die or hang are errors that say why."""

from pathlib import Path
from typing import ClassVar

import pytest

from stepscale.bench.regression import sessions
from stepscale.bench.regression.benchmarks.messages import Plan, Ready, Timings
from stepscale.bench.regression.sessions import Session, SessionError, Watch, conduct

Log = list[tuple[str, str, int, Plan | None]]  # session, test, round, what was agreed


class Scripted:
    """A session without a process: runs its tests, each for so many rounds."""

    def __init__(self, name: str, tests: dict[str, int], log: Log) -> None:
        self.name, self.log, self.cpu_s = name, log, 0.0
        self.script = [(test, round_) for test in sorted(tests) for round_ in range(tests[test])]
        self.tests = sorted(tests)
        self.ready: Ready | None = None
        self.threads = 0

    def listen(self) -> None:
        self.ready = None
        if self.script:
            test, round_ = self.script.pop(0)
            own = Plan(steps=ord(self.name), limit_runs=1, rounds=1) if round_ == 1 else None
            self.ready = Ready(test, round_, cpu_s=0.0, proposal=own)

    def grant(self, agreed: Plan | None) -> None:
        assert self.ready is not None
        self.log.append((self.name, self.ready.test, self.ready.round, agreed))

    def pin(self, threads: int) -> None:
        self.threads = threads


class Quiet:
    def __init__(self) -> None:
        self.ended = 0

    def judge(self, turn: tuple[str, int], *, ended: bool) -> None:
        self.ended += ended


def granted(*tests: dict[str, int]) -> tuple[Log, list[Scripted]]:
    log: Log = []
    sessions = [Scripted(name, own, log) for name, own in zip("ABCD", tests, strict=False)]
    quiet = Quiet()
    conduct(sessions, 1, quiet, lambda done, of: None)  # type: ignore[arg-type]
    assert quiet.ended == len(sessions)
    return log, sessions


def test_no_session_runs_ahead_and_all_are_on_the_same_cores() -> None:
    log, sessions = granted(*[{"x": 5, "y": 3}] * 4)
    assert len(log) == 4 * 8
    for k in range(0, len(log), 4):
        assert {entry[0] for entry in log[k : k + 4]} == set("ABCD")
        assert len({entry[1:3] for entry in log[k : k + 4]}) == 1
    assert [session.threads for session in sessions] == [1] * 4


def test_the_order_within_a_round_is_random() -> None:
    log, _ = granted(*[{"x": 40}] * 4)
    orders = {"".join(entry[0] for entry in log[k : k + 4]) for k in range(0, len(log), 4)}
    assert len(orders) > 8


def test_the_first_proposal_holds_for_all() -> None:
    log, _ = granted(*[{"x": 4, "y": 4}] * 4)
    for test in ("x", "y"):
        agreed = {entry[3] for entry in log if entry[1] == test and entry[2] >= 1}
        assert len(agreed) == 1 and agreed != {None}


def test_a_test_that_some_lack_holds_the_others_up_only_in_its_place() -> None:
    log, _ = granted({"x": 2, "z": 2}, {"x": 2, "y": 2, "z": 2})
    assert [entry[1] for entry in log] == ["x"] * 4 + ["y"] * 2 + ["z"] * 4


class OtherCpu:
    """What others use, by a script; nothing to say at None."""

    script: ClassVar[list[float | None]] = []

    def __init__(self, idle: int, ours: object, window_s: float, cpus: object) -> None: ...

    def restart(self) -> None: ...

    def cores(self) -> float | None:
        return self.script.pop(0) if self.script else 0.0


def test_turns_in_a_contended_window_are_noted_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(sessions, "OtherCpu", OtherCpu)
    monkeypatch.setattr(sessions.time, "sleep", slept.append)
    OtherCpu.script = [None, 0.1, None, 0.9, 0.8, 0.0, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    watch = Watch([], [0], patience_s=4 * sessions.WATCH_S)
    for round_ in range(6):
        watch.judge(("x", round_))
    assert watch.contended == {("x", 2), ("x", 3), ("x", 5)}
    assert len(slept) == 4, "two windows until it was quiet, then the rest of the patience"
    assert watch.waited_s == watch.patience_s


def test_what_a_session_spends_on_its_end_is_no_contention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OtherCpu", OtherCpu)
    OtherCpu.script = [None, None, 0.9]
    watch = Watch([], [0], patience_s=0)
    watch.judge(("x", 0))
    watch.judge(("x", 1))
    watch.judge(("x", 2), ended=True)
    assert not watch.contended and OtherCpu.script == [0.9]
    watch.judge(("x", 3))
    assert watch.contended == {("x", 3)}, "those before the end are forgotten"


HEAD = """
import os
from multiprocessing.connection import Connection
from stepscale.bench.regression.benchmarks.messages import *

there = Connection(int(os.environ["STEPSCALE_TURNS"]))
"""


def session(tmp_path: Path, body: str) -> Session:
    """Start one of benchmarks of our own."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(HEAD + body)
    return Session("A1", [tmp_path], ["-p", "no:benchmark"], {}, folder)


def test_a_session_tells_what_it_wants_found_and_failed(tmp_path: Path) -> None:
    one = session(
        tmp_path,
        "def test_it():\n"
        "    send(there, Collected(tests=['x'], files=[__file__], code='c'))\n"
        "    send(there, Ready('x', 0, cpu_s=0.5, proposal=Plan(3, 2, 1)))\n"
        "    plan = receive_answer(there)\n"
        "    send(there, Found('x', Timings('o', 8, limit_s=1e-3, first_round=2, step_s=[float(plan.steps)])))\n"
        "    send(there, Failed('y', 'because'))\n",
    )
    try:
        one.listen()
        assert (one.tests, one.code, one.cpu_s) == (["x"], "c", 0.5)
        assert one.ready == Ready("x", 0, cpu_s=0.5, proposal=Plan(3, 2, 1))
        one.grant(Plan(steps=7, limit_runs=2, rounds=1))
        one.listen()
        assert one.ready is None
        assert one.found == {"x": Timings("o", 8, limit_s=1e-3, first_round=2, step_s=[7.0])}
        assert one.failed == {"y": "because"}
    finally:
        one.end()


def test_a_session_that_cannot_start_says_why(tmp_path: Path) -> None:
    one = session(tmp_path, "import nothing_of_that_name\n")
    try:
        with pytest.raises(SessionError, match=r"(?s)A1 ended with status 2.*nothing_of_that_name"):
            one.listen()
    finally:
        one.end()


def test_a_session_killed_while_it_waits_says_so(tmp_path: Path) -> None:
    one = session(
        tmp_path,
        "import signal\nsend(there, Ready('x', 0, cpu_s=0.5))\nos.kill(os.getpid(), signal.SIGKILL)\n",
    )
    try:
        one.listen()
        one.process.wait(60)
        one.grant(None)
        with pytest.raises(SessionError, match="A1 ended with status -9"):
            one.listen()
    finally:
        one.end()


def test_a_session_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SILENCE_S", 0.1)
    one = session(tmp_path, "import time\ntime.sleep(60)\n")
    try:
        with pytest.raises(SessionError, match=r"A1 has said nothing for 0.1 s"):
            one.listen()
    finally:
        one.end()
    assert one.process.poll() is not None
