"""``stepscale merge A B … INTO``: put the records of several folders into one."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from stepscale.bench.errors import BadRecordError, UsageError
from stepscale.bench.records import store
from stepscale.bench.records.merging import merge

ABOUT = """Put the records of several folders into one, which grows by them. No record is changed, and none is lost:
where several folders have measured a cell, each by itself, all its records are kept, and the latest that did not fail
counts. The order of the folders does not matter, and merging again adds nothing."""


def main(words: list[str]) -> None:
    """Merge folders, and say what the last one holds; the exit status is 1 where a damaged record was left out."""
    parser = argparse.ArgumentParser(prog="stepscale merge", description=ABOUT)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a run, with its records")
    parser.add_argument("into", type=Path, metavar="INTO", help="the folder that grows; made where there is none")
    found = parser.parse_args(words)
    store.require_folder(found.into)
    gc.disable()  # which would go through all records again and again; nothing here is cyclic
    try:
        merged = merge(found.folders, found.into)
    except BadRecordError as error:  # of a plan
        raise UsageError(str(error)) from error
    print("\n".join(told(merged.records, merged.new, merged.beside, found.into)))
    if merged.complaints:
        print(*merged.complaints, sep="\n", file=sys.stderr)
        sys.exit(1)


def told(records: int, new: int, beside: int, into: Path) -> list[str]:
    """Say what a merge has come to."""
    count = "1 record" if records == 1 else f"{records} records"
    lines = [f"{count} in {into}, {new} of them new; `stepscale report {into}` shows them"]
    if beside:
        does = (
            "1 of them does not count: its cell was"
            if beside == 1
            else f"{beside} of them do not count: their cells were"
        )
        lines.append(f"{does} measured more than once, and the latest that did not fail counts")
    return lines
