"""What one step costs, free of noise: ``make counts`` prints it, ``make counts-update`` commits to it.

``tests/counts.json`` holds what is expected. FLOPs follow from the shapes on any machine; operations and bytes also
from the version of torch, which the file names.
"""

from __future__ import annotations

import argparse
import gc
import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stepscale.bench.counting.operation_counts import Allocated, OperationLog
from stepscale.bench.timing.workload import Workload
from tests.support.compose import OF_ONE_LENGTH, built, composed, named

OPTIMIZERS = named("optimizer")
EXPECTED = Path(__file__).parent / "counts.json"
BATCH = 100
USUAL_DIMS, DIMS = (512, 1024), {"naive": (128, 256)}  # a doubling each
LONG = (
    "ekfac",
    "kfac_clipped",
    "kfac_whole",
    "kldwrm",
    "mini_block",
    "shampoo",
    "tnt",
)  # periods of many cubic steps
DIMS |= {name: (256, 512) for name in OPTIMIZERS if name.startswith(LONG)}
TORCH = ".".join(torch.__version__.split(".")[:2])
FIELDS = ("flops", "operations", "synchronisations", "peak_bytes")

Row = dict[str, Any]


def count(optimizer: str, dim: int) -> Row:
    """Count one step, the mean over a period after the first; ``peak_bytes`` is the greatest of the period."""
    settings = OF_ONE_LENGTH.get(optimizer, [])
    config = composed(f"optimizer={optimizer}", f"dim={dim}", f"batch={BATCH}", *settings)
    torch.manual_seed(0)
    model = built(config["model"])
    workload = Workload(model, built(config["optimizer"])(model), [torch.randn(BATCH, dim)])
    workload.run(workload.period)  # what a first step allocates for good is no later step's
    gc.collect()
    gc.disable()  # or a cycle's end would move the peak
    try:
        with OperationLog() as counts, Allocated() as allocated:
            workload.run(workload.period)
    finally:
        gc.enable()
    assert not counts.uncounted, f"{optimizer}: no rule for the FLOPs of {counts.uncounted}"
    totals = counts.flops, len(counts.operations), counts.synchronisations
    means = {name: total / workload.period for name, total in zip(FIELDS, totals, strict=False)}
    return {"optimizer": optimizer, "dim": dim, **means, "peak_bytes": allocated.peak_bytes}


def count_doubling(optimizer: str) -> list[Row]:
    """Count at the optimizer's two dims, and say by how much each number grows."""
    rows = [count(optimizer, dim) for dim in DIMS.get(optimizer, USUAL_DIMS)]
    growth = {f"{name}_growth": round(rows[1][name] / rows[0][name], 4) for name in ("flops", "peak_bytes")}
    return [rows[0], rows[1] | growth]


@cache
def counted(optimizer: str) -> list[Row]:
    """Count once for all tests."""
    return count_doubling(optimizer)


def expected(optimizer: str) -> list[Row]:
    """Return the rows committed for an optimizer."""
    return [row for row in committed()["rows"] if row["optimizer"] == optimizer]


def committed() -> Row:
    """Return what is committed, or nothing."""
    return json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {"torch": TORCH, "rows": []}


def differences(found: list[Row], there: list[Row], same_torch: bool) -> list[str]:
    """Name each number that is not what is expected; with another torch only FLOPs can be compared."""
    fields = [*FIELDS, "peak_bytes_growth"] if same_torch else ["flops"]
    said = []
    for row in found:
        match = [other for other in there if (other["optimizer"], other["dim"]) == (row["optimizer"], row["dim"])]
        place = f"{row['optimizer']} at dim {row['dim']}"
        if not match:
            said.append(f"{place}: nothing is committed; run make counts-update")
            continue
        for field in ["flops_growth", *fields]:
            if row.get(field) != match[0].get(field):
                said.append(f"{place}: {field} is {row.get(field)}, {match[0].get(field)} is committed")
    return said


def main() -> None:
    """Print the counts, or commit to them."""
    parser = argparse.ArgumentParser(description="Count what each optimizer's step costs.")
    parser.add_argument("--update", action="store_true", help=f"write {EXPECTED.name}: what `make test` then expects")
    update = parser.parse_args().update
    rows = [row for optimizer in OPTIMIZERS for row in count_doubling(optimizer)]
    there = committed()
    said = [] if update else differences(rows, there["rows"], there["torch"] == TORCH)
    if update:
        lines = ",\n".join(json.dumps(row) for row in rows)
        EXPECTED.write_text(f'{{"torch": "{TORCH}", "batch": {BATCH}, "depth": 2, "rows": [\n{lines}\n]}}\n')
    print(pd.DataFrame(rows).astype(object).fillna("").to_markdown(index=False, floatfmt=".9g"))
    if not update:
        print("\n".join(["", *(said or [f"{EXPECTED.name} says the same"])]))


if __name__ == "__main__":
    main()
