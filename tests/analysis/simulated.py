"""How often the analysis is right, on simulated runs of known work: ``python -m tests.analysis.simulated`` prints it.

A run is of the default sweep's design, with all of ``KINDS`` in it. Coverage is counted over all dims whose share can
be told from 0 and 1; words are those at the largest dim. Factors are of steps in turns, over the baseline of the run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import pandas as pd

from stepscale.bench.analysis.cubic_work import RESOLVED, cubic_shares, growth, verdict
from stepscale.bench.analysis.factors import factors
from stepscale.bench.analysis.pairs import EQUAL
from tests.support.known_work import DIMS, KINDS, LARGEST, STEPS, Step, table

SEEDS, RUNS = (1, 2, 3), 1000
NOISES, IN_TURNS = (0.03, 0.07, 0.18), (0.005, 0.01, 0.03)  # between processes; the latter of those that take turns
# beside a baseline of 1: the same work, and products that make a step at dim ``LARGEST`` slower by this
APART = {"the same": 1.0, "3 % slower": 1.03, "10 % slower": 1.1, "half slower": 1.5}
COMPARED = {"layerwise": Step()} | {name: Step(products=1.2 * by) for name, by in APART.items()}


def share_runs(runs: Iterable[int], noise: float, seeds: int) -> pd.DataFrame:
    """One row a (run, optimizer, dim): the cubic share found, its interval, and how it compares with the truth."""
    found = []
    for run in runs:
        shares = cubic_shares(table(STEPS, noise=noise, seeds=seeds, rng=np.random.default_rng(run)))
        found.append(shares[["optimizer", "dim", "cubic_share", "cubic_low", "cubic_high"]])
    rows = pd.concat(found, ignore_index=True)
    true = pd.Series({(name, dim): step.cubic_share(dim) for name, step in STEPS.items() for dim in DIMS})
    truth = true.loc[list(zip(rows["optimizer"], rows["dim"], strict=True))].to_numpy()
    words = [verdict(low, high) for low, high in zip(rows["cubic_low"], rows["cubic_high"], strict=True)]
    right = rows["optimizer"].map({name: word for name, (_, word) in KINDS.items()})
    return rows.assign(
        truth=truth,
        inside=(truth > RESOLVED) & (truth < 1 - RESOLVED),
        covered=(rows["cubic_low"] <= truth) & (truth <= rows["cubic_high"]),
        undecided=[word == "undecided" for word in words],
        wrong=[word not in ("undecided", of) for word, of in zip(words, right, strict=True)],
    )


def share_table(runs: int) -> pd.DataFrame:
    """Summarise shares and words of so many runs of each noise and number of processes."""
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
                    "covered at the largest, %": 100 * largest.loc[largest["inside"], "covered"].mean(),
                    "undecided, %": 100 * largest["undecided"].mean(), "wrong, %": 100 * largest["wrong"].mean(),
                })  # fmt: skip
    return pd.DataFrame(rows)


def fit_table(runs: int) -> pd.DataFrame:
    """Summarise how often the fit of counted FLOPs holds the truth, and contradicts a share that is right."""
    rows = []
    for noise in NOISES:
        found = [growth(table(STEPS, noise=noise, rng=np.random.default_rng(run))) for run in range(runs)]
        for name, part in pd.concat(found).dropna(subset="fit_share").groupby("optimizer"):
            truth = STEPS[str(name)].cubic_share(LARGEST)
            rows.append({
                "noise, %": 100 * noise, "step": name, "truth, %": 100 * truth,
                "low, %": 100 * part["fit_low"].median(), "high, %": 100 * part["fit_high"].median(),
                "covered, %": 100 * ((part["fit_low"] <= truth) & (truth <= part["fit_high"])).mean(),
                "contradicts, %": 100 * (~part["fit_agrees"].astype(bool)).mean(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def factor_table(runs: int) -> pd.DataFrame:
    """Summarise factors and their verdicts at the largest dim, of optimizers in turns."""
    rows = []
    for seeds in SEEDS:
        for noise in IN_TURNS:
            found = [
                factors(table(COMPARED, noise=noise, seeds=seeds, rng=np.random.default_rng(n))) for n in range(runs)
            ]
            largest = pd.concat(found).query("dim == @LARGEST and optimizer != 'layerwise'")
            for name, part in largest.groupby("optimizer", sort=False):
                truth = COMPARED["layerwise"].seconds(LARGEST).sum() / COMPARED[str(name)].seconds(LARGEST).sum()
                allowed = {"undecided", "equal" if 1 / truth < EQUAL else "slower", "slower" if truth < 1 else "equal"}
                rows.append({
                    "processes": seeds, "noise, %": 100 * noise, "step": name, "truth": truth,
                    "width, %": 100 * np.log(part["high"] / part["low"]).median(),
                    "covered, %": 100 * ((part["low"] <= truth) & (truth <= part["high"])).mean(),
                    "equal, %": 100 * (part["verdict"] == "equal").mean(),
                    "slower, %": 100 * (part["verdict"] == "slower").mean(),
                    "wrong, %": 100 * (~part["verdict"].isin(allowed)).mean(),
                })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Print the three tables; the first is of that many runs, the others of a tenth of them."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    for found in (share_table(runs), fit_table(max(1, runs // 10)), factor_table(max(1, runs // 10))):
        print(found.round({name: 3 if name == "truth" else 1 for name in found}).to_markdown(index=False), "\n")


if __name__ == "__main__":
    main()
