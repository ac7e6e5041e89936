"""Copy a finished run into ``results/``, to be committed: ``stepscale publish RUN NAME``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
from msgspec.structs import replace

from stepscale.bench.errors import UsageError
from stepscale.bench.notes import one_line
from stepscale.bench.records import store
from stepscale.bench.records.ranges import Size

RESULTS = Path("results")


class Published(msgspec.Struct):
    """What is read of a run's plan."""

    cells: Size
    identities: list[str] = []  # once the run was whole
    finished: bool = False  # as older versions said it, which counted


def publish(run: Path, name: str) -> Path:
    """Copy a run's folder, records and report together, to ``results/NAME``.

    Raises:
        UsageError: no usable name, the run is unfinished, a record is damaged, or the name is taken.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "local":
        raise UsageError(f"NAME must be of letters, digits, '.', '_' and '-', and not local; got {name!r}")
    target = RESULTS / name
    if target.exists():
        raise UsageError(f"{target} is there already; choose another NAME, or remove it first")
    hint = "name a folder that `stepscale sweep` wrote, such as results/local/latest"
    if not (run / store.PLAN).exists():
        raise UsageError(f"{run} holds no sweep's run: there is no {store.PLAN} in it; {hint}")
    try:
        plan = msgspec.json.decode(store.content(run / store.PLAN).decode(), type=Published)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{run} holds no sweep's run: its {store.PLAN} {one_line(error)}; {hint}") from error
    there, complaints = store.read_all(run)
    recorded = {record.identity for record in there}
    wanted = set(plan.identities)
    whole = wanted <= recorded if wanted else plan.finished and len(there) >= plan.cells
    if complaints or not whole:
        missing = f"{len(there)} of its {plan.cells} cells are whole"
        raise UsageError(
            f"{run} is not finished: {missing}; run `make bench` again to finish it. " + " ".join(complaints)
        )
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
