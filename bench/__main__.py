"""The command line, ``stepscale`` or ``python -m stepscale.bench``: one of the ``COMMANDS``, or words for Hydra."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from typing import NamedTuple

from stepscale.bench import interrupt
from stepscale.bench.errors import UsageError
from stepscale.bench.runs.launch import launches

COMMANDS = {
    "sweep": "stepscale.bench.cli.sweep",
    "report": "stepscale.bench.cli.report",
    "merge": "stepscale.bench.cli.merge",
    "publish": "stepscale.bench.cli.publish",
    "regress": "stepscale.bench.cli.regress",
    "doctor": "stepscale.bench.cli.doctor",
    "world": "stepscale.bench.cli.world.command",
    "list": "stepscale.bench.cli.listing",
    "gate-check": "stepscale.bench.cli.gate_check",
}
UNDOING = [COMMANDS[name] for name in ("report", "merge", "publish", "doctor")]  # what they have begun, if interrupted
PIPE_CLOSED = 128 + signal.SIGPIPE  # a shell's, of what SIGPIPE ended
CELL = "stepscale.bench.cli.cell"
QUESTIONS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}  # answered without a cell


class Route(NamedTuple):
    """Where a command's words lead."""

    module: str  # its ``main`` takes the words
    words: list[str]
    starts_server: bool  # of the cells' processes, while the command still loads torch itself


def main() -> None:
    """Run the command line; what cannot be done is one sentence, and exit status 1."""
    interrupt.leave_at_once()
    for stream in (sys.stdout, sys.stderr):  # an ASCII terminal shows escapes, and loses nothing
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        require_system(sys.platform)
        sys.path.insert(0, here())  # where a user's own optimizer lies; the console script leaves it out
        to = route(sys.argv[1:])
        if to.starts_server:
            from stepscale.bench.cells import fork_server
            from stepscale.bench.machine import cores

            interrupt.leave_at_once(fork_server.stop)
            fork_server.start(cores.guessed_threads(to.words))
        command = importlib.import_module(to.module)
        if to.module in UNDOING:
            interrupt.remember()
            interrupt.raise_at_termination()
        command.main(to.words)
    except BrokenPipeError:  # whoever read the output has had enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except (UsageError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(interrupt.STATUS)
    finally:
        interrupt.ignore()  # what is left to do ends the cells' server


def require_system(system: str) -> None:
    """See that this is a system on which a cell can have a process forked for it.

    Raises:
        UsageError: it is not.
    """
    if system == "win32":
        raise UsageError("stepscale forks a process for each cell, which Windows cannot: run it in WSL, or on Linux")


def here() -> str:
    """Return the current folder.

    Raises:
        UsageError: it has been removed.
    """
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder is not there any more: go to one that is") from error


def route(words: list[str]) -> Route:
    """Say where words lead; what is to measure cells loads torch here and in their server at the same time.

    Where the words set ``threads``, the server waits for the configuration to say of how many it is. Where a launcher
    starts the parts of a run, cells are measured elsewhere.

    Raises:
        UsageError: the first word is neither a command nor an override.
    """
    first = words[0] if words else ""
    if first in COMMANDS:
        return Route(COMMANDS[first], words[1:], first == "sweep" and _serves(words))
    if first and "=" not in first and first[0] not in "-+~":
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}, or words as dim=64"
        raise UsageError(f"no command {first!r}; {meant}")
    return Route(CELL, words, _serves(words))


def _serves(words: list[str]) -> bool:
    return not (launches(words) or any(word in QUESTIONS or word.startswith("threads=") for word in words))


if __name__ == "__main__":
    main()
