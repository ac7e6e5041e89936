"""``stepscale publish RUN NAME``: copy a finished run into ``results/``."""

from __future__ import annotations

import argparse
from pathlib import Path

from stepscale.bench.runs.publish import LICENCE, publish


def main(words: list[str]) -> None:
    """Publish a run."""
    parser = argparse.ArgumentParser(prog="stepscale publish", description="Copy a finished run to results/NAME.")
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--partial", action="store_true", help="also where cells are missing; its page says how many")
    parser.add_argument("--licence", default=LICENCE, help=f"that its manifest names (default {LICENCE})")
    arguments = parser.parse_args(words)
    print(publish(arguments.run, arguments.name, partial=arguments.partial, licence=arguments.licence))
