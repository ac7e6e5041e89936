"""``stepscale report FOLDER``: write a run's report anew from its records."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Collection
from pathlib import Path

from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
from stepscale.bench.records.schema import Record
from stepscale.bench.report.write import write_of


def main(words: list[str]) -> None:
    """``stepscale report FOLDER``: write a run's report anew from its records."""
    parser = argparse.ArgumentParser(prog="stepscale report", description="Write a run's report from its records.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(words).folder
    gc.disable()  # which would go through all records again and again; nothing here is cyclic
    show(folder, *store.read_all(folder))


def show(folder: Path, records: Collection[Record], complaints: list[str]) -> None:
    """Write a run's report and print its summary.

    Raises:
        UsageError: it cannot be written; the message says how to have it all the same.
    """
    try:
        summary = write_of(records, complaints, folder)
    except OSError as error:
        if not records and isinstance(error, FileNotFoundError):
            raise UsageError(str(error)) from error
        again = f"once {folder} can be written, `stepscale report {folder}` writes it"
        raise UsageError(f"no report: {error}; the records that are there are whole: {again}") from error
    print(summary)
