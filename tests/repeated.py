"""The verdicts of repeated runs in one table: ``python -m tests.repeated results/ten-runs`` writes ``verdicts.csv``.

A folder holds one run's folder for each repetition, named by the conditions: ``quiet-1``, ``loaded-1``.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import pandas as pd

from stepscale.bench.analysis.cubic_work import growth
from stepscale.bench.analysis.factors import factors
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Task


def verdicts(run: Path) -> pd.DataFrame:
    """One row an optimizer and batch: verdict, cubic share and factor over layerwise at the largest dim."""
    records, complaints = store.read_all(run)
    assert not complaints, complaints
    cells = tables.cells_of(records, Task.TIME)
    keys = ["batch", "optimizer"]
    found = growth(cells)[[*keys, "dim_max", "verdict", "cubic_share", "cubic_low", "cubic_high"]]
    over = factors(cells)
    over = over[over["baseline"] == "layerwise"].rename(columns={"verdict": "against_layerwise", "dim": "dim_max"})
    over = over[[*keys, "dim_max", "factor", "low", "high", "against_layerwise"]]
    times = sorted(datetime.fromisoformat(record.finished) for record in records)
    minutes = (times[-1] - times[0]).total_seconds() / 60  # from the first record to the last
    return found.merge(over, on=[*keys, "dim_max"], how="left").assign(cells=len(records), minutes=round(minutes, 2))


def main() -> None:
    """Write the table of a folder's runs, and print in how many of them each optimizer got which verdict."""
    folder = Path(sys.argv[1])
    runs = {path.name: verdicts(path) for path in sorted(folder.iterdir()) if (path / store.RECORDS).is_dir()}
    table = pd.concat(runs, names=["run"]).reset_index(level="run")
    table.to_csv(folder / "verdicts.csv", index=False, float_format="%.4g")
    counted = table.groupby(["batch", "optimizer"])["verdict"].value_counts().unstack(fill_value=0)
    spans = table.groupby(["batch", "optimizer"])["cubic_share"].agg(["min", "max"]).mul(100).round(1)
    print(counted.join(spans.rename(columns=lambda name: f"share, %, {name}")).to_markdown())
    print(table.groupby("run")[["minutes", "cells"]].first().to_markdown())


if __name__ == "__main__":
    main()
