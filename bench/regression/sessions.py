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
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from stepscale.bench.errors import SessionError
from stepscale.bench.machine import cores
from stepscale.bench.machine.other_processes import OtherCpu
from stepscale.bench.records.contended import CONTENDED
from stepscale.bench.regression.benchmarks.messages import (
    Collected,
    Failed,
    Found,
    Message,
    Plan,
    Ready,
    Timings,
    receive_message,
    send,
)

SILENCE_S = 300.0  # a session that says nothing for so long hangs
PATIENCE_S = 60.0  # to wait for other processes, in all
WATCH_S = 0.25  # the kernel counts CPU in ticks of 10 ms
BENCHMARKS = Path(__file__).parent / "benchmarks"  # of this version, for either
FINE = (0, 1, 5)  # pytest's exit status: passed, some failed (which they told), nothing collected


class Session:
    """One pytest process and what it has told so far."""

    def __init__(
        self,
        name: str,
        folders: Sequence[Path],
        arguments: Sequence[str],
        variables: dict[str, str],
        benchmarks: Path = BENCHMARKS,
    ) -> None:
        self.name = name
        self.tests: list[str] = []
        self.found: dict[str, Timings] = {}
        self.failed: dict[str, str] = {}
        self.files: list[str] = []  # of the package it imported
        self.code = ""
        self.ready: Ready | None = None
        self.cpu_s = 0.0
        self.connection, theirs = Pipe()
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - a pipe might fill up
        command = [sys.executable, "-m", "pytest", str(benchmarks), "-q", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=folders[0],
            env=os.environ
            | variables
            | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "STEPSCALE_TURNS": str(theirs.fileno())},
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
        self.ready = None
        while self.ready is None:
            if not self.connection.poll(SILENCE_S):
                raise SessionError(f"session {self.name} has said nothing for {SILENCE_S:g} s")
            try:
                words = receive_message(self.connection)
            except (EOFError, OSError):
                self._require_fine_end()
                return
            self._note(words)

    def _note(self, words: Message) -> None:
        match words:
            case Collected():
                self.tests, self.files, self.code = words.tests, words.files, words.code
            case Ready():
                self.ready, self.cpu_s = words, words.cpu_s
            case Found():
                self.found[words.test] = words.timings
            case Failed():
                self.failed.setdefault(words.test, words.reason)

    def _require_fine_end(self) -> None:
        try:
            status = self.process.wait(SILENCE_S)
        except subprocess.TimeoutExpired as error:
            raise SessionError(f"session {self.name} does not end") from error
        if status not in FINE:
            self.output.seek(0)
            tail = "\n".join(self.output.read().strip().splitlines()[-15:])
            raise SessionError(f"session {self.name} ended with status {status}:\n{tail}")

    def grant(self, agreed: Plan | None) -> None:
        """Give it its turn; should it be gone, ``listen`` finds out why."""
        with suppress(OSError):
            send(self.connection, agreed)

    def pin(self, threads: int) -> None:
        """Keep it on the last cores: two cores of a shared machine can differ by a factor of two, for seconds."""
        if sys.platform == "linux" and self.process.poll() is None:
            os.sched_setaffinity(self.process.pid, cores.last(threads))

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.close()


class Watch:
    """Tells which rounds fell into a time when other processes used the machine, and waits for a quiet one."""

    def __init__(self, sessions: Sequence[Session], cpus: Collection[int], patience_s: float = PATIENCE_S) -> None:
        ours = lambda: time.process_time() + sum(session.cpu_s for session in sessions)  # noqa: E731
        self._others = OtherCpu(0, ours, WATCH_S, cpus)
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
    agreed: dict[str, Plan] = {}
    while waiting := [(session, session.ready) for session in sessions if session.ready]:
        session, turn = min(waiting, key=lambda pair: (order[pair[1].test], pair[1].round, random.random()))
        if turn.proposal is not None:
            agreed.setdefault(turn.test, turn.proposal)
        tell(order[turn.test], len(order))
        session.grant(agreed.get(turn.test))
        session.listen()
        watch.judge((turn.test, turn.round), ended=session.ready is None)
