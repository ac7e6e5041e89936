"""``stepscale key=value ...``: measure one cell; with ``-m`` every cell of a grid. What Hydra answers is left to it."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stepscale.bench import interrupt
from stepscale.bench.cli.running import ANEW, finish, run_plan, say, typed
from stepscale.bench.config import CONF, Words, compose_cell, composed_by_hydra, searchable, value_of
from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
from stepscale.bench.records.schema import Status
from stepscale.bench.runs import progress
from stepscale.bench.runs.conduct import describe
from stepscale.bench.runs.folders import LOCAL
from stepscale.bench.runs.plan import plan_multirun
from stepscale.bench.runs.run import Run

SINGLE = LOCAL / "single"  # where cells lie that belong to no plan
MULTIRUN = {"-m", "--multirun"}
OURS = {*MULTIRUN, ANEW, "--config-dir", "-cd"}  # flags that are not Hydra's to answer
ENGINE = re.compile(r"[+~]*hydra[/.](launcher|sweeper)\b")  # another way to run a grid, as on Slurm


def main(words: list[str]) -> None:
    """Measure one cell, or a grid of them."""
    if hydras(words):
        interrupt.remember()
        hydra_job()
        return
    anew, asked = ANEW in words, [word for word in words if word != ANEW]
    if MULTIRUN & set(asked):
        asked = [word for word in asked if word not in MULTIRUN]
        sys.exit(run_plan(plan_multirun(asked), asked, anew=anew))
    sys.exit(measure_one(searchable(asked), anew=anew))


def hydras(words: Words) -> bool:
    """Whether Hydra answers itself: ``--cfg``, ``--info``, completion, or a grid by another launcher or sweeper."""
    flags = [word.split("=")[0] for word in words if word.startswith("-")]
    return any(flag not in OURS for flag in flags) or any(ENGINE.match(word) for word in words)


def measure_one(words: Words, *, anew: bool) -> int:
    """Measure the cell of these words, unless it is there; return the exit status."""
    path = Path(value_of(words, "hydra.run.dir") or SINGLE)
    job = describe(compose_cell(words), typed(), path)
    interrupt.remember()
    new = [folder for folder in (path / store.RECORDS, path, *path.parents) if not folder.exists()]
    run = Run(path, None, say)
    there = job.identity in run.records and not anew
    try:
        [record] = run.measure([job], anew=anew)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; there is no record\n")
        return interrupt.STATUS
    if there and not run.measured:
        say(f"it is there, of {record.finished}; {ANEW} measures it again")
    if record.status is Status.FAILED and record.traceback is None:  # refused, as its line says
        store.path_of(path, job.identity).unlink(missing_ok=True)
        for folder in new:
            with suppress(OSError):  # it holds something else, or is no longer there
                folder.rmdir()
        return 1
    ended = [progress.details(record)] if record.status is Status.OK or there else []  # else its line has said it
    say("\n".join([*ended, f"record in {path}; `stepscale report {path}` shows it beside the others there"]))
    return int(record.status is not Status.OK)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def hydra_job(config: DictConfig) -> None:
    """Measure the cell of a job that Hydra has started, wherever its launcher runs it."""
    chosen = HydraConfig.get()
    command = shlex.join(["stepscale", *chosen.overrides.task])
    path = Path(chosen.runtime.output_dir)
    try:
        Run(path, None, say).measure([describe(composed_by_hydra(config), command, path)])
    except (OSError, UsageError) as error:
        sys.exit(str(error))


class ReportAtEnd(Callback):
    """Writes the report when Hydra has run a grid by itself."""

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Write it from the records that are there, whoever has measured them."""
        run = Run(Path(config.hydra.sweep.dir), None, say)
        if status := finish(run, []):
            sys.exit(status)
