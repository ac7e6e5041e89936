"""What a session of benchmarks tells the gate, and is told.

Both ends are of one version of the code, the gate's own, whichever version a session measures. They know this module by
different names, so that what they send names no module: msgpack, tagged by the class's name.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import msgspec
from msgspec import Struct


class Plan(Struct, frozen=True):
    """How a benchmark is measured; the first session's holds for all."""

    steps: int  # a round
    limit_runs: int  # between two rounds, now and then
    rounds: int


class Timings(Struct, frozen=True):
    """What a benchmark found."""

    optimizer: str
    dim: int
    limit_s: float
    first_round: int
    step_s: list[float]  # a value a round, from the first on


class Collected(Struct, frozen=True, tag=True):
    """A session's tests, and which code it imported."""

    tests: list[str]
    files: list[str]
    code: str


class Ready(Struct, frozen=True, tag=True):
    """A session waits for its turn."""

    test: str
    round: int
    cpu_s: float  # that it has used so far
    proposal: Plan | None = None


class Found(Struct, frozen=True, tag=True):
    """A test has passed."""

    test: str
    timings: Timings


class Failed(Struct, frozen=True, tag=True):
    """A test has failed."""

    test: str
    reason: str


Message = Collected | Ready | Found | Failed
"""From a session to the gate, whose answer to ``Ready`` is a ``Plan | None``."""


def send(connection: Connection, words: Message | Plan | None) -> None:
    """Send a message or an answer.

    Raises:
        OSError: the other end is gone.
    """
    connection.send_bytes(msgspec.msgpack.encode(words))


def receive_message(connection: Connection) -> Message:
    """Wait for what a session tells.

    Raises:
        EOFError, OSError: the session is gone.
    """
    return msgspec.msgpack.decode(connection.recv_bytes(), type=Message)


def receive_answer(connection: Connection) -> Plan | None:
    """Wait for a session's turn; return the plan that holds for all.

    Raises:
        EOFError: the gate is gone.
    """
    return msgspec.msgpack.decode(connection.recv_bytes(), type=Plan | None)
