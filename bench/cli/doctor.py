"""What difference this machine can resolve, and what disturbs it: ``stepscale doctor``. Changes nothing.

Times the same cell in many processes, each a fresh start of the same code: their spread is what a difference must
exceed. Meanwhile it reads what the system tells of load, clocks and throttling.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.special import stdtrit

from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.cli.running import say
from stepscale.bench.config import compose_cell
from stepscale.bench.locks import measuring
from stepscale.bench.machine import description, disturbances
from stepscale.bench.machine.device import choose_device
from stepscale.bench.records.headline import estimate
from stepscale.bench.records.schema import Status
from stepscale.bench.runs.conduct import describe

DIMS = {"cpu": (96, 512), "cuda": (512, 4096)}  # one where the host's calls show, one where the products do
CELLS = 12  # of each
SEEDS = (2, 5)  # of default and of published runs


def main(words: list[str]) -> None:
    """Look for a minute, and say what was found."""
    parser = argparse.ArgumentParser(
        prog="stepscale doctor", description="What this machine can resolve, and what disturbs it."
    )
    parser.add_argument("--cells", type=int, default=CELLS, help=f"processes a dim (default {CELLS}, at least 3)")
    cells = parser.parse_args(words).cells
    if cells < 3:
        parser.error(f"a spread needs at least 3 cells, got {cells}")
    device = choose_device("auto")
    where = description.machine(device)
    print(f"{where.gpu or where.cpu}, {where.cores} cores, torch {torch.__version__}: one minute", flush=True)
    with measuring(device, "looking how far processes differ", say):
        before = disturbances.throttled()
        findings = [disturbances.load(), disturbances.steadiness(), *disturbances.settings()]
        findings += disturbances.gpu() if device == "cuda" else []
        spreads = [spread(dim, cells, device) for dim in DIMS[device]]
    findings += disturbances.throttling(before, disturbances.throttled())
    for finding in findings:
        print(f"{finding.mark()}  {finding.what:<13} {finding.found}")
        if finding.remedy:
            print(f"{'':<17} {finding.remedy}")
    for said in spreads:
        print(f"\n{said}")


def spread(dim: int, cells: int, device: str) -> str:
    """Time one cell in that many processes; say how far they come apart, and what difference that hides."""
    with tempfile.TemporaryDirectory(prefix="stepscale-doctor-") as folder:
        records = [process.run([job(dim, seed, device, Path(folder))])[0] for seed in range(cells)]
    good = [estimate(record.timing.blocks) for record in records if record.timing is not None]
    if len(good) < 3:
        reasons = {str(record.reason) for record in records if record.status is not Status.OK}
        return f"dim {dim}: {len(good)} of {cells} processes could be timed: {'; '.join(reasons)}"
    said = [f"relative step at dim {dim}: {1e3 * np.median([cell.step_s for cell in good]):.3g} ms on {device}"]
    figures = {"in ms": [cell.step_s for cell in good], "as a ratio to the limit": [cell.ratio for cell in good]}
    for words, values in figures.items():
        sd = float(np.std(np.log(values), ddof=1))
        seen = " and ".join(f"{100 * resolution(sd, len(good), n):.1f} % with {n} seeds" for n in SEEDS)
        said.append(f"  {words:<24} {100 * sd:4.1f} % (sd) between processes of the same code; it can resolve {seen}")
    if contended := sum(cell.contended for cell in good):
        said.append(f"  {contended} of {len(good)} processes were disturbed by others")
    return "\n".join(said)


def resolution(sd: float, measured: int, seeds: int) -> float:
    """Return the relative difference of two means of ``seeds`` cells that a 95 % interval just tells from none."""
    return math.expm1(float(stdtrit(measured - 1, 0.975)) * sd * math.sqrt(2 / seeds))


def job(dim: int, seed: int, device: str, folder: Path) -> Job:
    """Describe a cell of the relative step, as ``timing=quick`` measures it."""
    words = ["optimizer=relative", f"dim={dim}", f"seed={seed}", "timing=quick", f"device={device}"]
    return describe(compose_cell(words), "stepscale doctor", folder)
