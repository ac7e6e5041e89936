"""Ctrl-C in a command's first seconds: ``python -m tests.reliability.early_interrupt --to FILE.csv``.

It is sent at 20 moments while torch loads, to a sweep, to a cell and to a comparison of two versions. Lost are those
after which the command went on, or said something else than that it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from tests.support.jobs import BRIEF
from tests.support.processes import marked, survivors

COMMANDS = {"sweep": ["sweep", "quick", *BRIEF], "cell": ["dim=8", *BRIEF], "regress": ["regress", "HEAD"]}
PATIENCE_S = 20.0


def interrupted(words: list[str], moment_s: float, cwd: Path) -> dict[str, object]:
    """Send SIGINT to a command's group so long after its start; return how it ended."""
    mark, environment = marked()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "stepscale.bench", *words]
    began = subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, text=True, **pipes)  # type: ignore[call-overload]
    time.sleep(moment_s)
    os.killpg(began.pid, signal.SIGINT)
    sent = time.monotonic()
    try:
        _, errors = began.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        began.kill()
        _, errors = began.communicate()
    took_s = time.monotonic() - sent
    ours = "stepscale" in errors.split("Traceback", 1)[-1] if "Traceback" in errors else False
    started = began.returncode != -signal.SIGINT and not ("Traceback" in errors and not ours)
    return {
        "status": began.returncode, "seconds_to_end": round(took_s, 2), "before_its_first_line": not started,
        "lost": started and (began.returncode != 130 or ours), "left": "; ".join(survivors(mark, 10)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="between 0 and 3 s, for each command")
    parser.add_argument("--to", type=Path, help="CSV file of the rows")
    arguments = parser.parse_args()
    rows = []
    for name, words in COMMANDS.items():
        for moment_s in np.linspace(0, 3, arguments.moments):
            with tempfile.TemporaryDirectory() as folder:
                cwd = Path() if name == "regress" else Path(folder)  # of which it wants a repository
                more = ["--out", folder] if name == "regress" else []
                rows.append({"command": name, "moment_s": moment_s, **interrupted([*words, *more], moment_s, cwd)})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.2f"))
    print(f"{len(table)} tries, {table['lost'].sum()} lost, {(table['left'] != '').sum()} with processes left")
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.to, index=False, float_format="%.3f")
    sys.exit(int(table["lost"].any() or (table["left"] != "").any()))


if __name__ == "__main__":
    main()
