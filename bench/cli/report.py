"""``stepscale report FOLDER …``: write a run's report anew from its records, or one of several runs together."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Collection, Sequence
from pathlib import Path

from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
from stepscale.bench.records.schema import Record
from stepscale.bench.records.tables import united
from stepscale.bench.report.write import Source, write_of

ABOUT = """Write a run's report from its records. Of several folders it is one report: machines stand beside each other,
and where two folders hold the same cells of one machine by other code, torch or driver, it says which steps became
slower."""


def main(words: list[str]) -> None:
    """Write a report of the folders that are named."""
    parser = argparse.ArgumentParser(prog="stepscale report", description=ABOUT)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a run; earlier versions first")
    where = f"folder for the report (of one folder itself; of several {store.LOCAL}/A+B, of their names)"
    parser.add_argument("--to", type=Path, help=where)
    found = parser.parse_args(words)
    folders = list(dict.fromkeys(found.folders))
    gc.disable()  # which would go through all records again and again; nothing here is cyclic
    read = [store.read_all(folder) for folder in folders]
    sources = [Source(folder, records) for folder, (records, _) in zip(folders, read, strict=True)]
    if empty := [str(source.folder) for source in sources if not source.records and len(sources) > 1]:
        raise UsageError(f"no records in {', '.join(empty)}; name folders of runs")
    together = store.LOCAL / "+".join(path.resolve().name for path in folders)
    to = found.to or (folders[0] if len(folders) == 1 else together)
    store.require_folder(to)
    if any(source.records for source in sources):
        to.mkdir(parents=True, exist_ok=True)
    complaints = [complaint for _, told in read for complaint in told]
    show(to, united(source.records for source in sources), complaints, sources)


def show(folder: Path, records: Collection[Record], complaints: list[str], sources: Sequence[Source] = ()) -> None:
    """Write a run's report and print its summary; ``sources`` as of ``write_of``.

    Raises:
        UsageError: it cannot be written; the message says how to have it all the same.
    """
    try:
        summary = write_of(records, complaints, folder, sources)
    except OSError as error:
        if not records and isinstance(error, FileNotFoundError):
            raise UsageError(str(error)) from error
        command = "the same command" if sources else f"`stepscale report {folder}`"
        again = f"once {folder} can be written, {command} writes it"
        raise UsageError(f"no report: {error}; the records that are there are whole: {again}") from error
    print(summary)
