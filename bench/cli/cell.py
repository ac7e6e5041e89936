"""``stepscale key=value ...``: measure one cell; with ``-m`` every cell of a grid. What Hydra answers is left to it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import hydra
from omegaconf import DictConfig

from stepscale.bench import interrupt
from stepscale.bench.cli.running import ANEW, PART, read, run_plan, say, typed
from stepscale.bench.config import CONF, Words, compose_cell, searchable
from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
from stepscale.bench.records.schema import Status
from stepscale.bench.runs import progress
from stepscale.bench.runs.conduct import describe
from stepscale.bench.runs.plan import plan_multirun
from stepscale.bench.runs.run import Run

SINGLE = store.LOCAL / "single"  # where cells lie that belong to no plan
MULTIRUN = {"-m", "--multirun"}
OURS = {*MULTIRUN, ANEW, "--config-dir", "-cd"}  # flags that are not Hydra's to answer


def main(words: list[str]) -> None:
    """Measure one cell, or a grid of them."""
    if hydras(words):
        answer()
        return
    asked = read([word for word in words if word not in MULTIRUN])
    if MULTIRUN & set(words):
        sys.exit(run_plan(plan_multirun(asked.words), asked, ["-m", *asked.words]))
    if asked.launcher or asked.parts:
        raise UsageError(f"{(asked.launcher or [PART])[0]} is of a grid: add -m")
    sys.exit(measure_one(searchable(asked.words), Path(asked.into or SINGLE), anew=asked.anew))


def hydras(words: Words) -> bool:
    """Whether Hydra answers itself: ``--cfg``, ``--info``, completion."""
    return any(word.startswith("-") and word.split("=")[0] not in OURS for word in words)


def measure_one(words: Words, path: Path, *, anew: bool) -> int:
    """Measure the cell of these words, unless it is there; return the exit status."""
    job = describe(compose_cell(words), typed(), path)
    interrupt.remember()
    new = [folder for folder in (path / store.RECORDS, path, *path.parents) if not folder.exists()]
    run, file = Run(path, None, say), store.path_of(path, job.identity)
    earlier, was_there = run.records.get(job.identity), file.exists()
    there = earlier is not None and not anew
    try:
        [record] = run.measure([job], anew=anew)
    except KeyboardInterrupt:
        left = "there is no record" if earlier is None else f"its record of {earlier.finished} stays"
        sys.stderr.write(f"\ninterrupted; {left}\n")
        return interrupt.STATUS
    if there and not run.measured:
        say(f"it is there, of {record.finished}; {ANEW} measures it again")
    if earlier is not None and earlier.settled and not record.settled:
        say(f"its record of {earlier.finished} stays, in {path}")
        return 1
    if not was_there and record.status is Status.FAILED and record.traceback is None:  # refused, as its line says
        file.unlink(missing_ok=True)
        for folder in new:
            with suppress(OSError):  # it holds something else, or is no longer there
                folder.rmdir()
        return 1
    ended = [progress.details(record)] if record.status is Status.OK or there else []  # else its line has said it
    say("\n".join([*ended, f"record in {path}; `stepscale report {path}` shows it beside the others there"]))
    return int(record.status is not Status.OK)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def answer(config: DictConfig) -> None:
    """Answer what Hydra is asked about a configuration, as ``--cfg job`` does; a cell is not its to run."""
    sys.exit("a flag of Hydra's that asks nothing has no say here: leave it out")
