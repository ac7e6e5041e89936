"""``stepscale gate-check``: how often the regression gate cries wolf, and how small a slow-down it finds.

It takes about 70 minutes on 2 cores, goes on where it was stopped, and exits with 1 where the gate misses
what is asked of it, 2 where it could not be measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.cli.running import say
from stepscale.bench.errors import BuildError, SessionError, UsageError
from stepscale.bench.regression.gate import ERROR
from stepscale.bench.regression.self_check import COMPARISONS, MISSED, OUT, check, page


def main(words: list[str]) -> None:
    """Run what is left of the comparisons, and write the table."""
    parser = argparse.ArgumentParser(prog="stepscale gate-check", description="Measure the regression gate's quality.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the results (default {OUT})")
    parser.add_argument("--report", action="store_true", help="write the table of what is there, and measure nothing")
    arguments = parser.parse_args(words)
    before, status = comparisons(arguments.out), 0
    interrupt.remember()
    interrupt.raise_at_termination()
    try:
        if not arguments.report:
            check(arguments.out, say)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        status = interrupt.STATUS
    except (BuildError, SessionError) as error:
        print(f"{error}\nthe same command goes on from here", file=sys.stderr)
        status = ERROR
    if status and comparisons(arguments.out) == before:
        sys.exit(status)
    try:
        text = page(arguments.out)
    except FileNotFoundError as error:
        raise UsageError(f"no comparison has been made yet: {error}") from error
    (arguments.out / "README.md").write_text(text, encoding="utf-8")
    say(text)
    if status or MISSED in text:
        sys.exit(status or 1)


def comparisons(out: Path) -> bytes:
    """Return what has been measured so far, as it lies in a folder."""
    path = out / COMPARISONS
    return path.read_bytes() if path.exists() else b""
