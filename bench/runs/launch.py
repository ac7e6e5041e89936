"""Parts of a plan as jobs of a launcher of Hydra's, each a command in a process of its own.

Needs the standard library alone until parts are launched: a job's own process imports it, and so does a command before
it starts the server of its cells.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

LAUNCHER = re.compile(r"[+~]*hydra[/.]launcher\b")  # words that say how parts are started, and not what is measured
JOBS = "jobs"  # the folder in a run's that the launcher and its jobs write into
WATCH_S = 10.0  # between two looks at what jobs have recorded
LARGEST_ARRAY = 1000  # jobs that are handed over together: Slurm's usual limit is 1001


def launches(words: Iterable[str]) -> bool:
    """Whether words name a launcher."""
    return any(LAUNCHER.match(word) for word in words)


def launch(
    command: Sequence[str], numbers: Sequence[int], words: Sequence[str], folder: Path, tell: Callable[[str], None]
) -> str | None:
    """Have a launcher run parts, and wait for it; return what it raised, in a line.

    Args:
        command: the words that measure a part, but for its number.
        numbers: of the parts.
        words: of the launcher's: which, and its own settings.
        folder: the run's.
        tell: is called with each line that there is to say meanwhile.

    Raises:
        UsageError: Hydra does not know these words.
    """
    from stepscale.bench.config import multirun, quoted
    from stepscale.bench.errors import UsageError
    from stepscale.bench.notes import one_line
    from stepscale.bench.records.store import RECORDS

    place = f"hydra.sweep.dir={quoted(str(folder.absolute() / JOBS))}"
    usual = [place, "hydra.sweep.subdir=.", f"hydra.sweeper.max_batch_size={LARGEST_ARRAY}"]
    grid = f"part={','.join(map(str, numbers))}"
    try:
        with _watched(folder / RECORDS, tell):
            multirun(functools.partial(run_part, list(command)), grid, [*usual, *words])
    except UsageError:
        raise
    except Exception as error:  # whatever a launcher raises: the folder says what came of its jobs
        return one_line(error)
    return None


@contextmanager
def _watched(records: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, say how many records there are whenever there are more."""
    ended = threading.Event()

    def watch() -> None:
        told = len(list(records.glob("*.json")))
        while not ended.wait(WATCH_S):
            if (there := len(list(records.glob("*.json")))) > told:
                tell(f"{datetime.now():%H:%M:%S} {there} records")
                told = there

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def run_part(command: list[str], config: Mapping[str, object]) -> int:
    """Run a part's command and return its exit status; it is a launcher's job.

    A job of Slurm's whose part a signal has ended ends as by that signal. Slurm's own word for it then counts: what was
    requeued is waited for, and what was cancelled has not completed.
    """
    words = [sys.executable, "-m", "stepscale.bench", *command, f"part={config['part']}"]
    part = subprocess.Popen(words)
    try:
        status = part.wait()
    except KeyboardInterrupt:  # which the part has, too: it ends what it has started, and says what is recorded
        part.wait()
        raise
    if status < 0 and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        os._exit(128 - status)
    return status
