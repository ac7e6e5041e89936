"""Copy a finished run into ``results/``, to be committed: ``stepscale publish RUN NAME``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from msgspec.structs import replace

from stepscale.bench.errors import BadRecordError, UsageError
from stepscale.bench.records import store

RESULTS = Path("results")


def publish(run: Path, name: str, *, partial: bool = False) -> Path:
    """Copy a run's folder, records and report together, to ``results/NAME``; one that is ``partial`` if that is asked.

    Raises:
        UsageError: no usable name, the run is unfinished, a record is damaged, or the name is taken.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "local":
        raise UsageError(f"NAME must be of letters, digits, '.', '_' and '-', and not local; got {name!r}")
    target = RESULTS / name
    if target.exists():
        raise UsageError(f"{target} is there already; choose another NAME, or remove it first")
    hint = "name a folder that `stepscale sweep` wrote, such as results/local/latest"
    try:
        plan = store.read_plan(run)
    except BadRecordError as error:
        raise UsageError(f"{error}; {hint}") from error
    if plan is None:
        raise UsageError(f"{run} holds no sweep's run: there is no {store.PLAN} in it; {hint}")
    there, complaints = store.read_all(run)
    missing = plan.missing(there)
    if complaints or (missing and not partial):
        finish = "the command that measured it finishes it, and --partial publishes it as it is"
        told = f"{run} is not finished: {missing} of its {plan.cells} planned cells are not recorded; {finish}."
        raise UsageError(" ".join([told, *complaints]))
    shutil.copytree(
        run.resolve(),
        target,
        ignore=shutil.ignore_patterns("*.partial", "multirun.yaml", "checkpoints", "locks", store.LOGS),
    )
    here = f"{Path.cwd()}/"  # commands name the folder they were given in, and records their host: nobody's business
    for path in target.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(here, ""), encoding="utf-8")
    for record in store.read_all(target)[0]:
        record.machine = replace(record.machine, host="")
        store.save(record, target)
    return target
