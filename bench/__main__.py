"""The command line, ``stepscale`` or ``python -m stepscale.bench``: words for Hydra, or one of the ``COMMANDS``."""

from __future__ import annotations

import importlib
import os
import sys

from stepscale.bench.cells import fork_server
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import cores

COMMANDS = {
    "sweep": "stepscale.bench.cli.sweep",
    "report": "stepscale.bench.cli.report",
    "publish": "stepscale.bench.cli.publish",
    "regress": "stepscale.bench.cli.regress",
    "doctor": "stepscale.bench.cli.doctor",
    "list": "stepscale.bench.cli.listing",
}
QUESTIONS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}  # answered without a cell


def main() -> None:
    """Run the command line; what cannot be done is one sentence, and exit status 1."""
    try:
        run(sys.argv[1:])
    except UsageError as error:
        sys.exit(str(error))


def run(words: list[str]) -> None:
    """Run a command; what is to measure cells loads torch here and in their server at the same time.

    Where the words set ``threads``, the server waits for Hydra to say of how many it is.
    """
    sys.path.insert(0, os.getcwd())  # where a user's own optimizer lies; the console script leaves it out
    name = words[0] if words else ""
    measures = name == "sweep" or name not in COMMANDS  # others do so when all is quiet, elsewhere, or not at all
    if measures and not any(word in QUESTIONS or word.startswith("threads=") for word in words):
        fork_server.start(cores.default_threads())
    if name in COMMANDS:
        importlib.import_module(COMMANDS[name]).main(words[1:])
    else:
        importlib.import_module("stepscale.bench.cli.cell").main()


if __name__ == "__main__":
    main()
