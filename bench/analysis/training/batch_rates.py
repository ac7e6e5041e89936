"""Learning rates against the batch: the best of tuning's trials, the largest stable one, and how they grow."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from stepscale.bench.analysis.training.learning_curves import WORKLOAD

SHARED = [axis for axis in WORKLOAD if axis != "batch"]
RATES = [*WORKLOAD, "optimizer", "best", "stable", "best_open", "stable_open", "validation_nats", "spacing"]


def rates(runs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """One row a workload and optimizer: the best learning rate of its trials, and the largest that did not diverge.

    Of optimizers that are tuned by one rate alone, at several batches, in trials of one length. Best is by the
    validation split. A trial has diverged that did not come to its end, or ended no better than it began: saturated
    units hide what would else overflow. ``best_open`` says that it is the smallest or the largest of those that were
    tried, so that a better one may lie beyond; ``stable_open`` that no larger one was tried. ``spacing`` is the largest
    factor between neighbours. Without a stable rate there is no row.
    """
    trials = judged(runs, points)
    alone = [[key.rsplit(".", 1)[-1] for key in tuned] == ["lr"] for tuned in trials["tuned"]]
    trials = trials[np.array(alone, dtype=bool)]
    trials = trials.assign(rate=[next(iter(tuned.values())) for tuned in trials["tuned"]])
    rows = []
    for key, part in trials.groupby([*WORKLOAD, "optimizer"], sort=False):
        tried, held = np.unique(part["rate"]), part[part["stable"]]
        if part["budget"].nunique() > 1 or len(tried) < 2 or not len(held):
            continue
        best = held.iloc[int(held["validation_nats"].to_numpy(float).argmax())]
        found = {"best": float(best["rate"]), "stable": float(held["rate"].max())}
        row = dict(zip([*WORKLOAD, "optimizer"], key, strict=True)) | found
        row |= {"best_open": found["best"] in (tried[0], tried[-1]), "stable_open": found["stable"] == tried[-1]}
        row |= {"validation_nats": best["validation_nats"], "spacing": float((tried[1:] / tried[:-1]).max())}
        rows.append(row)
    if not rows:
        return pd.DataFrame(columns=RATES)
    found_rates = pd.DataFrame(rows, columns=RATES)
    return found_rates[found_rates.groupby([*SHARED, "optimizer"])["batch"].transform("nunique") > 1].reset_index(
        drop=True
    )


def judged(runs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The trials, and whether each was ``stable``: it came to its end, and ended better than it began."""
    trials, began = runs[runs["trial"]], points[points["step"] == 0] if len(points) else points
    first = began.groupby("identity")["validation_nats"].first() if len(began) else pd.Series(dtype=float)
    started = trials["identity"].map(first).astype(float).fillna(-math.inf)
    return trials.assign(stable=(trials["status"] == "ok") & (trials["validation_nats"] > started))


def growth(found: pd.DataFrame, what: str) -> tuple[float, float]:
    """Exponent of the batch in one optimizer's rates, by least squares of logarithms, and what the grid blurs it by.

    A rate is known to a factor of the square root of the grid's spacing; the blur is what the exponent changes by where
    the rates at both ends are off by so much, the other way.
    """
    batch = np.log(found["batch"].to_numpy(float))
    slope = float(np.polyfit(batch, np.log(found[what].to_numpy(float)), 1)[0])
    return slope, math.log(float(found["spacing"].max())) / float(np.ptp(batch))
