"""How often the analysis is right, on simulated runs of known work: ``python -m tests.analysis.simulated`` prints it.

A run is the default sweep's design with all of ``KINDS`` in it. Coverage is counted over all dims whose share can be
told from 0 and 1; words are those at the largest dim.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import pandas as pd

from stepscale.bench.analysis.cubic_work import RESOLVED, cubic_shares, growth, verdict
from stepscale.bench.analysis.factors import factors
from tests.support.known_work import DIMS, KINDS, LARGEST, STEPS, Step, table

NOISES, SEEDS, RUNS = (0.03, 0.07, 0.18), (1, 2, 3), 1000
COLUMNS = ["covered", "decided", "wrong", "exact"]


def share_runs(runs: Iterable[int], noise: float, seeds: int) -> pd.DataFrame:
    """One row a (run, optimizer, dim): the cubic share found, its interval, and how it compares with the truth."""
    found = []
    for run in runs:
        shares = cubic_shares(table(STEPS, noise=noise, seeds=seeds, rng=np.random.default_rng(run)))
        found.append(shares[["optimizer", "dim", "cubic_share", "cubic_low", "cubic_high"]].assign(run=run))
    rows = pd.concat(found, ignore_index=True)
    true = np.array([STEPS[name].cubic_share(dim) for name, dim in zip(rows["optimizer"], rows["dim"], strict=True)])
    words = [verdict(low, high) for low, high in zip(rows["cubic_low"], rows["cubic_high"], strict=True)]
    right = rows["optimizer"].map({name: word for name, (_, word) in KINDS.items()})
    return rows.assign(
        truth=true,
        inside=(true > RESOLVED) & (true < 1 - RESOLVED),
        covered=(rows["cubic_low"] <= true) & (true <= rows["cubic_high"]),
        undecided=[word == "undecided" for word in words],
        wrong=[word not in ("undecided", of) for word, of in zip(words, right, strict=True)],
    )


def share_table(runs: int) -> pd.DataFrame:
    """Summarise the shares and the verdicts of so many runs of each noise and number of processes."""
    rows = []
    for seeds in SEEDS:
        for noise in NOISES:
            for name, part in share_runs(range(runs), noise, seeds).groupby("optimizer", sort=False):
                largest, inside = part[part["dim"] == LARGEST], part[part["inside"]]
                width = (largest["cubic_high"] - largest["cubic_low"]).median()
                rows.append({
                    "processes": seeds, "noise, %": 100 * noise, "step": name,
                    "truth, %": 100 * largest["truth"].iloc[0], "median, %": 100 * largest["cubic_share"].median(),
                    "width, points": 100 * width, "covered, %": 100 * inside["covered"].mean(),
                    "undecided, %": 100 * largest["undecided"].mean(), "wrong, %": 100 * largest["wrong"].mean(),
                })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["processes", "noise, %", "step"], kind="stable")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    print(share_table(runs).round(1).to_markdown(index=False))


if __name__ == "__main__":
    main()
