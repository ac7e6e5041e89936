"""``stepscale regress [BASE]``: is a step slower than at a base?

Exit status: 0 fine or undecided, 1 regressed, whatever else failed, 2 error, 3 nothing was measured.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from stepscale.bench import interrupt
from stepscale.bench.cli.running import say
from stepscale.bench.errors import BuildError, SessionError
from stepscale.bench.regression import summary
from stepscale.bench.regression.gate import ERROR, Options, run

# settings of a cell that no benchmark reads -> what does so in their place
ELSEWHERE = {
    "optimizer": "--optimizers names those to compare",
    "dim": "--dims names those to compare at",
    "threads": "--threads sets those of each session",
    "device": "CUDA_VISIBLE_DEVICES= hides a GPU, which else is used",
    "timing": "of it only timing.compile is for benchmarks, whose rounds are of a fixed length",
}
CELLS_ALONE = ("task", "training", "memory_gib", "timeout_s", "world", "label", "hydra.job")


def main(words: list[str]) -> None:
    """Compare, print one table, write it for machines and for people, and exit with the verdict's status."""
    options = parse(words)
    interrupt.remember()
    interrupt.raise_at_termination()
    try:
        summary.clear(options.out)
        text, status = run(options, say)
        print(f"{text}\nwritten to {options.out}")
    except (BuildError, SessionError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        with suppress(OSError):  # the reason has been said
            summary.save_error(options.out, str(error), ERROR)
        status = ERROR
    except KeyboardInterrupt:
        print("\ninterrupted before anything was measured", file=sys.stderr)
        status = interrupt.STATUS
    sys.exit(status)


def parse(words: list[str]) -> Options:
    """Read the command line."""
    usual = Options()
    parser = argparse.ArgumentParser(prog="stepscale regress", description="Compare a checkout's steps with a base's.")
    what = "a git ref, by default where the checkout left main; and Hydra's words for every benchmark, as batch=16"
    parser.add_argument("words", nargs="*", metavar="BASE or key=value", help=what)
    parser.add_argument("--config-dir", type=Path, help="in a repository of yours: the folder with your YAML")
    parser.add_argument("--optimizers", default="", help="only these, separated by commas; all for every one")
    parser.add_argument("--dims", default="", help="these dims instead of each optimizer's two, separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="of each session (default 1: the least disturbed)")
    parser.add_argument("--out", type=Path, default=usual.out, help=f"folder for the results (default {usual.out})")
    found = parser.parse_intermixed_args(words)
    optimizers, dims = (tuple(filter(None, map(str.strip, text.split(",")))) for text in (found.optimizers, found.dims))
    if not all(dim.isdigit() and int(dim) for dim in dims):
        parser.error(f"dims must be whole numbers separated by commas, got {','.join(dims)!r}")
    if found.threads < 1:
        parser.error(f"threads must be at least 1, got {found.threads}")
    refs = [word for word in found.words if "=" not in word]
    if len(refs) > 1:
        parser.error(f"one base is compared with, got {', '.join(refs)}")
    settings = tuple(word for word in found.words if "=" in word)
    for word in settings:
        if remedy := no_say(word):
            parser.error(f"{word} has no say here: {remedy}")
    return Options(refs[0] if refs else None, found.config_dir, settings, optimizers, dims, found.threads, found.out)


def no_say(word: str) -> str | None:
    """Say why a word of Hydra's has no say in the benchmarks; None where it has one."""
    key = word.lstrip("+~").split("=")[0]
    if key in ELSEWHERE or (key.startswith("timing.") and key != "timing.compile"):
        return ELSEWHERE[key.split(".")[0]]
    if any(f"{key}.".startswith(f"{name}.") for name in CELLS_ALONE):
        return "it is of single cells and sweeps, as `stepscale key=value` measures them"
    return None
