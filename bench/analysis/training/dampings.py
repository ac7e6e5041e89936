"""Dampings against rates and batches: which is best at each rate, and how it grows with both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from stepscale.bench.analysis.training.batch_rates import SHARED, judged
from stepscale.bench.analysis.training.learning_curves import WORKLOAD

DAMPINGS = [*WORKLOAD, "optimizer", "rate", "damping", "open", "validation_nats", "spacing"]


class Growth(NamedTuple):
    """Exponents of rate and batch in the best damping, and what the grid blurs each by; NaN where it cannot be told."""

    rate: float
    batch: float
    rate_blur: float
    batch_blur: float
    pairs: int  # of rate and batch at which the best damping lies within what was tried


def dampings(runs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """One row a workload, optimizer and learning rate: the damping of its best stable trial by the validation split.

    Of optimizers that are tuned by a rate and a damping, several of each, at several batches, in trials of one length.
    ``open`` says that it is the smallest or the largest of those that were tried, so that a better one may lie beyond.
    ``spacing`` is the largest factor between neighbours.
    """
    trials, rows = _paired(judged(runs, points)), list[dict[str, object]]()
    for key, part in trials.groupby([*WORKLOAD, "optimizer", "rate"], sort=False):
        tried, held = np.unique(part["damping"]), part[part["stable"]]
        if part["budget"].nunique() > 1 or len(tried) < 3 or not len(held):
            continue
        best = held.iloc[int(held["validation_nats"].to_numpy(float).argmax())]
        row = dict(zip([*WORKLOAD, "optimizer", "rate"], key, strict=True)) | {"damping": best["damping"]}
        row |= {"open": best["damping"] in (tried[0], tried[-1]), "validation_nats": best["validation_nats"]}
        rows.append(row | {"spacing": float((tried[1:] / tried[:-1]).max())})
    if not rows:
        return pd.DataFrame(columns=DAMPINGS)
    found = pd.DataFrame(rows, columns=DAMPINGS)
    several = found.groupby([*SHARED, "optimizer"])[["batch", "rate"]].transform("nunique") > 1
    return found[several.all(axis=1)].reset_index(drop=True)


def _paired(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that differ in one rate and one damping, with both as columns."""
    named = [sorted((key.rsplit(".", 1)[-1], value) for key, value in tuned.items()) for tuned in trials["tuned"]]
    both = np.array([[name for name, _ in own] == ["damping", "lr"] for own in named], dtype=bool)
    pairs = [[value for _, value in own] for own, is_pair in zip(named, both, strict=True) if is_pair]
    damping, rate = np.array(pairs, dtype=float).reshape(-1, 2).T
    return trials[both].assign(damping=damping, rate=rate)


def growth(found: pd.DataFrame) -> Growth:
    """How one optimizer's best damping grows with rate and batch, by least squares of logarithms.

    Only of pairs at which it lies within what was tried. A damping is known to a factor of the square root of the
    grid's spacing; a blur is what an exponent changes by where those at both ends are off by so much, the other way.
    """
    within = found[~found["open"].astype(bool)]
    known = np.log(within[["rate", "batch"]].to_numpy(float))
    powers, _, rank, _ = np.linalg.lstsq(
        np.column_stack([known, np.ones(len(within))]), np.log(within["damping"].to_numpy(float)), rcond=None
    )
    if rank < 3:  # they lie on one line
        return Growth(np.nan, np.nan, np.nan, np.nan, len(within))
    blurs = np.log(float(found["spacing"].max())) / np.ptp(known, axis=0)
    return Growth(float(powers[0]), float(powers[1]), float(blurs[0]), float(blurs[1]), len(within))
