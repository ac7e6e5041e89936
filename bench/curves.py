"""What training came to: final likelihoods, time and steps to a common target, performance profiles.

Pure functions of two tables: the runs (``records.load(folder, "train")``) and the points of their curves
(``records.curves``). A workload is everything but the optimizer and the seed. Trials of tuning are in no result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from stepscale.bench.records import GROUP
from stepscale.bench.words import HONEST, base

WORKLOAD = [*GROUP, "dim"]
GAIN = 0.99  # of the way from the initial likelihood to the best final one: the second target
BASELINE, BEST = f"{HONEST}'s end", f"{100 * GAIN:g} % of the gain"


def results(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a workload and optimizer: medians over seeds, with the range of the held-out likelihood."""
    rows = []
    for key, part in _final(runs).groupby([*WORKLOAD, "optimizer"], sort=False):
        ok = part[part["status"] == "ok"]
        row: dict[str, Any] = dict(zip([*WORKLOAD, "optimizer"], key, strict=True))
        row |= {"seeds": len(part), "ok": len(ok), "tuned": _words(part["tuned"].iloc[0])}
        for name in ("held_out_nats", "held_out_bits", "steps", "seconds", "step_ms", "drift_nats", "halved", "amari"):
            row[name] = ok[name].median()
        row["low"], row["high"] = ok["held_out_nats"].min(), ok["held_out_nats"].max()
        row["fast_ica_amari"] = ok["fast_ica_amari"].median()
        rows.append(row)
    return pd.DataFrame(rows)


def targets(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a workload and target: the held-out likelihood to be reached, on the rows of the curves.

    ``BASELINE`` is where the honest baseline's median run ends; ``BEST`` is most of what the best of all gains.
    """
    ends = _ends(runs, curves)
    rows = []
    for key, part in ends.groupby(WORKLOAD, sort=False):
        place = dict(zip(WORKLOAD, key, strict=True))
        medians = part.groupby("optimizer")["end"].median()
        start = float(part["start"].median())
        rows.append(place | {"target": BEST, "nats": start + GAIN * (medians.max() - start)})
        baseline = part[part["optimizer"].map(base) == HONEST].groupby("optimizer")["end"]
        honest = baseline.quantile(0.5, interpolation="lower").to_numpy()  # half of its runs reach it, be they even
        if len(honest):
            rows.append(place | {"target": BASELINE, "nats": float(honest.max())})
    return pd.DataFrame(rows, columns=[*WORKLOAD, "target", "nats"])


def reached(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a final run and target: the steps and the seconds of steps it took, infinite where it missed."""
    final, aims = _final(runs), targets(runs, curves)
    rows = []
    for _, run in final.merge(aims, on=WORKLOAD).iterrows():
        points = curves[curves["identity"] == run["identity"]]
        row = {name: run[name] for name in (*WORKLOAD, "optimizer", "seed", "target", "nats")}
        rows.append(row | {name: first_time(points, name, run["nats"]) for name in ("steps", "seconds")})
    return pd.DataFrame(rows)


def first_time(points: pd.DataFrame, what: str, nats: float) -> float:
    """Return when a curve first reaches a likelihood, by linear interpolation between its points."""
    x = points[{"steps": "step", "seconds": "seconds"}[what]].to_numpy()
    y = points["held_out_nats"].to_numpy()
    there = np.flatnonzero(y >= nats)
    if not len(there):
        return math.inf
    k = int(there[0])
    if k == 0:
        return float(x[0])
    return float(x[k - 1] + (x[k] - x[k - 1]) * (nats - y[k - 1]) / (y[k] - y[k - 1]))


def to_target(runs: pd.DataFrame, reaches: pd.DataFrame) -> pd.DataFrame:
    """Join step time, steps to target and time to target: medians over seeds, a miss counting as infinite.

    ``of_baseline`` is the time as a share of the honest baseline's to the same target; nothing where either missed it.
    """
    keys = [*WORKLOAD, "optimizer", "target"]
    table = reaches.groupby(keys, sort=False).agg(
        nats=("nats", "first"), steps=("steps", "median"), seconds=("seconds", "median"),
        fastest_s=("seconds", "min"), slowest_s=("seconds", "max"),
        missed=("seconds", lambda s: int(np.isinf(s).sum())), runs=("seconds", "size"),
    ).reset_index()  # fmt: skip
    table = table.merge(results(runs)[[*WORKLOAD, "optimizer", "step_ms"]], on=[*WORKLOAD, "optimizer"])
    honest = table[table["optimizer"].map(base) == HONEST].groupby([*WORKLOAD, "target"])["seconds"].min()
    table = table.join(honest.rename("honest_s"), on=[*WORKLOAD, "target"])
    both = np.isfinite(table["seconds"]) & np.isfinite(table["honest_s"])
    return table.assign(of_baseline=(table["seconds"] / table["honest_s"]).where(both)).drop(columns="honest_s")


def profiles(table: pd.DataFrame) -> pd.DataFrame:
    """Share of (workload, target) on which an optimizer takes at most ``factor`` times as long as the fastest.

    Performance profiles of Dolan & Moré 2002, as AlgoPerf uses them, of the rows of ``to_target``; one row an
    optimizer and factor at which its share rises.
    """
    best = table.groupby([*WORKLOAD, "target"])["seconds"].transform("min")
    known = table[np.isfinite(best)].assign(factor=lambda t: t["seconds"] / best)
    count = known.groupby([*WORKLOAD, "target"]).ngroups
    rows = []
    for name, part in known.groupby("optimizer"):
        factors = np.sort(part["factor"].to_numpy())
        finite = factors[np.isfinite(factors)]
        rows += [{"optimizer": name, "factor": f, "share": (k + 1) / count} for k, f in enumerate(finite)]
        rows += [] if len(finite) else [{"optimizer": name, "factor": 1.0, "share": 0.0}]
    return pd.DataFrame(rows, columns=["optimizer", "factor", "share"])


def budget(runs: pd.DataFrame) -> str:
    """Say what each optimizer was given: trials to be tuned by, and runs."""
    trials = runs[runs["trial"]]
    if not len(trials):
        return "No optimizer was tuned: each ran as its file says."
    counts = trials.groupby([*WORKLOAD, "optimizer"]).size()
    spread = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    seconds = trials["seconds"].median()
    return (
        f"Tuned alike: {spread} trials of {seconds:.2g} s of steps for each optimizer and workload, over a log grid of"
        " learning rate (and damping, where there is one), chosen by a validation split; held-out rows were read by"
        " the final runs only, on other seeds."
    )


def _final(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[~runs["trial"]]


def _ends(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """First and last held-out likelihood of each final run that came to its end."""
    done = _final(runs)
    done = done[done["status"] == "ok"]
    ordered = curves.sort_values(["identity", "step"]).groupby("identity")["held_out_nats"]
    return done.join(ordered.first().rename("start"), on="identity").join(ordered.last().rename("end"), on="identity")


def _words(tuned: dict[str, float]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value:.3g}" for key, value in tuned.items())
