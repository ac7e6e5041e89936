"""A run into ``results/``, to be committed, with a report of what is published: ``stepscale publish RUN NAME``."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec.structs import replace

from stepscale.bench.errors import BadRecordError, UsageError
from stepscale.bench.records import merging, store
from stepscale.bench.records.merging import Found
from stepscale.bench.records.schema import Blocks, Record
from stepscale.bench.report import write

RESULTS = Path("results")
LICENCE = "MIT"  # of this repository, whose results they are
PARQUET, MANIFEST = "records.parquet", "manifest.json"
BLOCKS = [field.name for field in msgspec.structs.fields(Blocks)]
OWN = {"data": "data_facts", "machine": "hardware"}  # names of a record's parts that an axis has too
AS_JSON = [
    OWN.get(name, name)
    for name in (
        "config", "environment", "machine", "sources", "timing", "counts", "memory", "direction", "training", "tuning",
        "data", "notes",
    )
]  # fmt: skip


def publish(run: Path, name: str, *, partial: bool = False, licence: str = LICENCE) -> Path:
    """Write a run's records, pictures, plan and report to ``results/NAME``; of an unfinished one if ``partial``.

    Its remarks go with it. What else lies in its folder, as launchers' logs and a user's own notes, is not copied.
    Where pyarrow is there, its records lie in one Parquet file too. A manifest names every file of what was measured.

    Raises:
        UsageError: no usable name, the run is unfinished or empty, a record is damaged, or the name is taken.
        OSError: a file cannot be written; nothing is left of it.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "local":
        raise UsageError(f"NAME must be of letters, digits, '.', '_' and '-', and not local; got {name!r}")
    target = RESULTS / name
    if target.exists():
        raise UsageError(f"{target} is there already; choose another NAME, or remove it first")
    found = whole(run, partial=partial)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, suffix=".partial", ignore_cleanup_errors=True) as beside:
        new = Path(beside) / name
        merging.write(merging.names(_anonymous(one, run) for one in found), new)
        for kept in (store.PLAN, store.REMARKS):
            if (run / kept).is_file():  # only a plan must be there, and is
                said = (run / kept).read_text(encoding="utf-8", errors="replace")
                (new / kept).write_text(_without_here(said, run), "utf-8")
        write.write(new)
        records = store.read_all(new)[0]
        if find_spec("pyarrow") is not None:
            write_parquet(records, new / PARQUET)
        write_manifest(records, new, licence)
        new.rename(target)
    return target


def whole(run: Path, *, partial: bool) -> list[Found]:
    """Return the records of a run that is finished; of one that is not, if it may be ``partial``.

    Raises:
        UsageError: it is not finished or empty, or a record is damaged.
    """
    hint = "name a folder that `stepscale sweep` wrote, such as results/local/latest"
    try:
        plan = store.read_plan(run)
    except BadRecordError as error:
        raise UsageError(f"{error}; {hint}") from error
    if plan is None:
        raise UsageError(f"{run} holds no sweep's run: there is no {store.PLAN} in it; {hint}")
    found, complaints = merging.read(run)
    missing = plan.missing([one.record for one in found])
    if complaints:
        raise UsageError(" ".join(complaints))
    if not found or (missing and not partial):
        finish = "the command that measured it finishes it, and --partial publishes what there is"
        raise UsageError(
            f"{run} is not finished: {missing} of its {plan.cells} planned cells are not recorded; {finish}"
        )
    return found


def _without_here(text: str, run: Path) -> str:
    """Leave out of a text, or of JSON, the folder that publishing is run in, and the one that the run lies in."""
    for folder in (Path.cwd(), run.absolute().parent):
        if folder != folder.parent:  # below the root lies every path
            text = text.replace(json.dumps(f"{folder}/")[1:-1], "").replace(f"{folder}/", "")
    return text


def _anonymous(found: Found, run: Path) -> Found:
    """Return a record without what is nobody's business: its host, and the folders that its command names."""
    encoded = store.encode(replace(found.record, machine=replace(found.record.machine, host="")))
    encoded = _without_here(encoded.decode(), run).encode()
    return found._replace(record=store.decode(encoded), encoded=encoded)


def write_parquet(records: list[Record], path: Path) -> None:
    """Write records as one table, a row a record; nothing of them is lost.

    The axes and what is one value each are columns. So are the blocks, a list each, where a step was timed. Every other
    part of a record is a column of JSON; ``hardware`` is what the machine is, beside ``machine``, its name.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [_row(record) for record in records]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    types = {name: pyarrow.list_(pyarrow.int64() if name == "steps" else pyarrow.float64()) for name in BLOCKS}
    types |= dict.fromkeys(AS_JSON, pyarrow.string())
    arrays = {name: pyarrow.array(values, types.get(name)) for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, compression="zstd")


def _row(record: Record) -> dict[str, object]:
    plain = msgspec.to_builtins(record)
    axes, blocks = plain.pop("cell"), plain["timing"].pop("blocks") if record.timing else {}
    parts = {OWN.get(name, name): part for name, part in plain.items()}
    told = {name: json.dumps(part) if name in AS_JSON else part for name, part in parts.items()}
    return axes | {"machine": record.machine.name} | told | {name: blocks.get(name) for name in BLOCKS}


def write_manifest(records: list[Record], folder: Path, licence: str) -> None:
    """Write which files hold what was measured, with a hash each, and by which code; a report can be written anew."""
    measured = [folder / store.PLAN, folder / PARQUET, *folder.glob(f"{store.RECORDS}/*"), *folder.glob("pictures/*")]
    files = sorted(path for path in measured if path.is_file())
    facts = {
        "licence": licence,
        "commit": sorted({record.environment.commit for record in records if record.environment.commit}),
        "code": sorted({record.environment.code for record in records}),
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
