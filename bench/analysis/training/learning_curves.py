"""What training came to: final likelihoods, time and steps to a common target, performance profiles.

Pure functions of two tables: the runs (``tables.load(folder, "train")``) and the points of their curves
(``tables.curves``). A workload is everything but the optimizer and the seed. Trials of tuning are in no result.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from stepscale.bench.analysis.baselines import HONEST, base
from stepscale.bench.records.schema import GROUP

WORKLOAD = [*GROUP, "dim"]
GAIN = 0.99  # of the way from the initial likelihood to the best final one: the second target
WORST = {"held_out_nats": -math.inf, "held_out_bits": math.inf}
MEDIANS = ["held_out_nats", "held_out_bits", "steps", "seconds", "step_ms", "drift_nats", "halved"]
MEDIANS += ["inner_iterations", "amari"]
BASELINE, BEST = f"{HONEST}'s end", f"{100 * GAIN:g} % of the gain"


def results(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a workload and optimizer: medians over seeds, with the range of the held-out likelihood.

    In the median of likelihoods a run without an end, as one that diverged, counts as worse than any; where half of
    them are such, there is none.
    """
    rows = []
    for key, part in _final(runs).groupby([*WORKLOAD, "optimizer"], sort=False):
        ok = part[part["status"] == "ok"]
        row: dict[str, object] = dict(zip([*WORKLOAD, "optimizer"], key, strict=True))
        row |= {"seeds": len(part), "ok": len(ok), "tuned": _words(part["tuned"].iloc[0])}
        for name in MEDIANS:
            row[name] = ok[name].dropna().median()  # pandas 2 warns where nothing is known
        row |= {name: _median_end(part[name], worst) for name, worst in WORST.items()}
        row["low"], row["high"] = ok["held_out_nats"].min(), ok["held_out_nats"].max()
        row["fast_ica_amari"] = ok["fast_ica_amari"].dropna().median()
        row |= {name: next(iter(part[name].dropna()), None) for name in ("caveat", "unit")}
        rows.append(row)
    return pd.DataFrame(rows)


def _median_end(values: pd.Series, worst: float) -> float:
    """Median of a figure that only the runs which came to their end have."""
    found = float(values.fillna(worst).median())
    return found if math.isfinite(found) else math.nan


def targets(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a workload and target: the held-out likelihood to be reached, on the rows of the curves.

    ``BASELINE`` is where the honest baseline's median run ends; ``BEST`` is most of what the best of all gains.
    """
    ends = _ends(runs, curves)
    rows = []
    for key, part in ends.groupby(WORKLOAD, sort=False):
        place = dict(zip(WORKLOAD, key, strict=True))
        # the lower median: of an even number of runs, too, at least half reach it
        medians = part.groupby("optimizer")["end"].quantile(0.5, interpolation="lower")
        start, best = float(part["start"].median()), medians.max()
        honest = medians[medians.index.map(base) == HONEST].max()
        aims = {BEST: start + GAIN * (best - start), BASELINE: honest}
        rows += [place | {"target": aim, "nats": float(nats)} for aim, nats in aims.items() if math.isfinite(nats)]
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
    keys = [*WORKLOAD, "optimizer"]
    order = trials.groupby("budget")["steps"].median().rank(method="first")  # the short ones first
    counts = trials.groupby([*keys, "budget"]).size().rename("trials").reset_index()
    counts = counts.sort_values("budget", key=lambda budgets: budgets.map(order), kind="stable")
    counts["rung"] = counts.groupby(keys).cumcount()  # workloads may have budgets of their own
    tuned = counts.set_index(keys).index
    untuned = sorted(set(runs.groupby(keys).size().index.difference(tuned).get_level_values("optimizer")))
    apart = f" Not tuned, having nothing of the kind: {', '.join(f'`{name}`' for name in untuned)}." if untuned else ""
    return (
        f"Tuned alike: {_counted(counts)} for each optimizer and workload, over a log grid of learning rate (and"
        f" damping, where there is one), chosen by a validation split; held-out rows were read by the final runs only,"
        f" on other seeds.{apart}"
    )


def _counted(counts: pd.DataFrame) -> str:
    """Say how many trials there were of each rung, the first and those that went on for longer."""
    said = list[str]()
    for _, rung in counts.groupby("rung"):
        least, most = rung["trials"].agg(["min", "max"])
        number = f"{least}" if least == most else f"{least} to {most}"
        budget = " to ".join(rung["budget"].iloc[[0, -1]].drop_duplicates())
        said.append(f"of the best of these {number} once more for {budget}" if said else f"{number} trials of {budget}")
    more = " (more where none of the first came to its end)" if len(said) > 1 else ""
    return ", and ".join(said) + more


def _final(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[~runs["trial"]]


def _ends(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """First and last held-out likelihood of each final run; where one has not come to its end, the last is -inf."""
    ordered = curves.sort_values(["identity", "step"]).groupby("identity")["held_out_nats"]
    ends = ordered.agg(start="first", end="last")
    found = _final(runs).join(ends, on="identity")
    return found.assign(end=found["end"].where(found["status"] == "ok", -math.inf))


def _words(tuned: dict[str, float]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value:.3g}" for key, value in tuned.items())
