"""Own optimizers that misbehave, all in one sweep: ``python -m tests.reliability.misbehaving --to FILE.csv``.

A row each says what became of its cell, and whether that is what was to come. A well-behaved optimizer is measured
beside each of them, and a process that is left at the end is a fault.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from stepscale.bench.records import store
from tests.support.deeds import DEEDS
from tests.support.jobs import BRIEF
from tests.support.processes import marked, survivors

OPTIMIZER = "_target_: stepscale.optimizers.pair\n_partial_: true\n"
DIRECTION = "direction: {_target_: stepscale.optimizers.Relative, _partial_: true, bias: plain}\n"
UPDATE = "update: {_target_: tests.support.deeds.Misbehaving, _partial_: true, lr: 1e-3, deed: '%s'}\n"
NEIGHBOURS = 2  # seeds of the one that behaves, measured in turns with all of the others
LIMITS = ["timeout_s=5", "memory_gib=0.5"]


def sweep(folder: Path, deeds: list[str], timeout_s: float) -> tuple[pd.DataFrame, list[str]]:
    """Measure a cell of each deed and seed; return a row a deed, and what is wrong beside that."""
    configs = folder / "conf" / "optimizer"
    configs.mkdir(parents=True)
    for number, deed in enumerate(deeds):
        (configs / f"deed{number}.yaml").write_text(OPTIMIZER + DIRECTION + UPDATE % deed)
    optimizers = ",".join(["relative", *(f"deed{number}" for number in range(len(deeds)))])
    words = ["--config-dir", str(folder / "conf"), "-m", f"optimizer={optimizers}", "dim=8", *BRIEF, *LIMITS]
    mark, environment = marked()
    environment["PYTHONPATH"] = f"{Path.cwd()}:{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "stepscale.bench", *words, f"seed={','.join(map(str, range(NEIGHBOURS)))}"]
    with (folder / "said").open("wb") as said:
        status = subprocess.run([*command, "into=run"], cwd=folder, env=environment, stdout=said,
                                stderr=said, timeout=timeout_s).returncode  # fmt: skip
    records, faults = store.read_all(folder / "run")
    by_name = {(record.cell.optimizer, record.cell.seed): record for record in records}
    rows = []
    for number, deed in enumerate(deeds):
        there = [by_name.get((f"deed{number}", seed)) for seed in range(NEIGHBOURS)]
        statuses = [str(record.status) if record else "none" for record in there]
        reason = next((record.reason for record in there if record and record.reason), "")
        rows.append({"deed": deed, "status": " ".join(sorted(set(statuses))), "reason": reason,
                     "as_expected": set(statuses) <= DEEDS[deed][1]})  # fmt: skip
    said_text = (folder / "said").read_text(encoding="utf-8", errors="replace")
    neighbours = [by_name.get(("relative", seed)) for seed in range(NEIGHBOURS)]
    faults += [f"a neighbour is {made and made.status}" for made in neighbours if made is None or made.status != "ok"]
    faults += ["there is no report"] * (not (folder / "run" / "report.html").exists())
    faults += [f"exit status {status}"] * (status != 0) + ["a traceback of ours"] * ("Traceback" in said_text)
    faults += [f"left: {name}" for name in survivors(mark, 10)]
    return pd.DataFrame(rows), faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deeds", default="", help="only these, separated by commas; by default all")
    parser.add_argument("--to", type=Path, help="CSV file of the rows")
    arguments = parser.parse_args()
    deeds = list(filter(None, arguments.deeds.split(","))) or list(DEEDS)
    folder = Path(tempfile.mkdtemp(prefix="misbehaving-"))
    table, faults = sweep(folder, deeds, 3600)
    print(table.to_string(index=False))
    print(f"{len(table)} deeds, {table['as_expected'].sum()} as expected; beside: {faults or 'nothing wrong'}")
    if not faults:
        shutil.rmtree(folder)
    if arguments.to:
        arguments.to.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.to, index=False)
    sys.exit(int(bool(faults) or not table["as_expected"].all()))


if __name__ == "__main__":
    main()
