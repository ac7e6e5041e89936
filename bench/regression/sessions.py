"""Several pytest sessions of the same benchmarks side by side, of which only one runs at a time.

The machine's speed drifts by several per cent within a second. Sessions that run one after another meet different
speeds; sessions that take turns of a few milliseconds, in an order that is random in each round, meet the same.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from stepscale.bench.errors import SessionError
from stepscale.bench.machine.other_processes import OtherCpu
from stepscale.bench.records.schema import CONTENDED

SILENCE_S = 300.0  # a session that says nothing for so long hangs
PATIENCE_S = 60.0  # to wait for other processes, in all
WATCH_S = 0.25  # the kernel counts CPU in ticks of 10 ms
FINE = (0, 1, 5)  # pytest's exit status: passed, some failed (which they told), nothing collected


class Session:
    """One pytest process and what it has told so far."""

    def __init__(
        self, name: str, package: Path, benchmarks: Path, arguments: Sequence[str], variables: dict[str, str]
    ) -> None:
        self.name = name
        self.tests: list[str] = []
        self.found: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.files: list[str] = []  # of the package it imported
        self.code = ""
        self.wants: tuple[str, int] | None = None
        self.proposal: Any = None
        self.cpu_s = 0.0
        self.connection, theirs = Pipe()
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - a pipe might fill up
        command = [sys.executable, "-m", "pytest", "tests/benchmarks", "-q", "-p", "no:cacheprovider", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=benchmarks,
            env=os.environ | variables | {"PYTHONPATH": str(package), "STEPSCALE_TURNS": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        theirs.close()

    def listen(self) -> None:
        """Hear what it says until it wants a turn or is at its end.

        Raises:
            SessionError: it died, or is silent for too long.
        """
        self.wants = None
        while True:
            if not self.connection.poll(SILENCE_S):
                raise SessionError(f"session {self.name} has said nothing for {SILENCE_S:g} s")
            try:
                words = self.connection.recv()
            except (EOFError, OSError):
                break
            if "wants" in words:
                self.wants, self.proposal = (words["wants"], words["round"]), words["proposal"]
                self.cpu_s = words["cpu_s"]
                return
            if "tests" in words:
                self.tests, self.files, self.code = words["tests"], words["files"], words["code"]
            elif "found" in words:
                self.found[words["found"]] = words["info"]
            else:
                self.failed.setdefault(words["failed"], words["reason"])
        try:
            status = self.process.wait(SILENCE_S)
        except subprocess.TimeoutExpired as error:
            raise SessionError(f"session {self.name} does not end") from error
        if status not in FINE:
            self.output.seek(0)
            tail = "\n".join(self.output.read().strip().splitlines()[-15:])
            raise SessionError(f"session {self.name} ended with status {status}:\n{tail}")

    def grant(self, agreed: Any) -> None:
        """Give it its turn; should it be gone, ``listen`` finds out why."""
        with suppress(OSError):
            self.connection.send(agreed)

    def pin(self, threads: int) -> None:
        """Keep it on the last cores: two cores of a shared machine can differ by a factor of two, for seconds."""
        if hasattr(os, "sched_setaffinity") and self.process.poll() is None:
            os.sched_setaffinity(self.process.pid, sorted(os.sched_getaffinity(0))[-threads:])

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.close()


class Watch:
    """Tells which rounds fell into a time when other processes used the machine, and waits for a quiet one."""

    def __init__(self, sessions: Sequence[Session], idle_cores: int, patience_s: float = PATIENCE_S) -> None:
        ours = lambda: time.process_time() + sum(session.cpu_s for session in sessions)  # noqa: E731
        self._others = OtherCpu(idle_cores, ours, WATCH_S)
        self._pending: list[tuple[str, int]] = []
        self.patience_s = patience_s
        self.waited_s = 0.0
        self.contended: set[tuple[str, int]] = set()

    def judge(self, turn: tuple[str, int], *, ended: bool = False) -> None:
        """Note a turn that has just ended; once in a while, look back on the last ones.

        ``ended``: with the turn its session, whose last CPU nobody has told.
        """
        if ended:
            self._others.restart()
            self._pending = []
            return
        self._pending.append(turn)
        cores = self._others.cores()
        if cores is None:
            return
        if cores > CONTENDED:
            self.contended |= set(self._pending)
        self._pending = []
        while cores is not None and cores > CONTENDED and self.waited_s < self.patience_s:
            time.sleep(WATCH_S)
            self.waited_s += WATCH_S
            cores = self._others.cores()


def conduct(sessions: Sequence[Session], threads: int, watch: Watch, tell: Callable[[int, int], None]) -> None:
    """Grant turns until every session is at its end.

    All run on the same cores, as many as each has threads. The next turn goes to one of the sessions that are least
    far, so that none runs ahead; each runs its tests in the order of their names. ``tell`` is called before a turn with
    how many of how many tests have been run.
    """
    for session in sessions:
        session.listen()
        session.pin(threads)
    order = {test: place for place, test in enumerate(sorted({test for s in sessions for test in s.tests}))}
    agreed: dict[str, Any] = {}
    while waiting := [session for session in sessions if session.wants]:
        session = min(waiting, key=lambda s: (order[s.wants[0]], s.wants[1], random.random()))  # type: ignore[index]
        test, round_ = session.wants  # type: ignore[misc]
        if session.proposal is not None:
            agreed.setdefault(test, session.proposal)
        tell(order[test], len(order))
        session.grant(agreed.get(test))
        session.listen()
        watch.judge((test, round_), ended=session.wants is None)
