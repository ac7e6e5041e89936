"""Rounds of two versions of the code, taken in turns -> verdicts and an exit status. Imports no torch.

A difference is *regressed* or *improved* only if it is larger than what matters (``THRESHOLD``), larger than what two
runs of the same code differ by in this very comparison (the noise floor), and has an interval that excludes no change.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from stepscale.bench.records.headline import MIN_BLOCKS

THRESHOLD = 0.04  # a smaller difference is of no practical interest
BASE, HEAD = ("A1", "A2"), ("B1", "B2")  # each version is run twice
RESAMPLED = 1000
REGRESSED, NOTHING_MEASURED = 1, 3  # exit status
COLUMNS = [
    "optimizer", "dim", "base_ms", "head_ms", "ratio", "low", "high", "se", "floor", "resolution", "head_over_limit",
    "rounds", "contended", "verdict",
]  # fmt: skip


def compare(rounds: pd.DataFrame) -> pd.DataFrame:
    """Compare head with base at every benchmark; one row each.

    Args:
        rounds: one row a round: ``optimizer``, ``dim``, ``session`` (``A1``, ``A2`` of base, ``B1``, ``B2`` of head),
            ``round`` (rounds of one number were taken in turns), ``step_s``, ``limit_s`` and ``contended``.

    ``ratio`` is head / base, the median over the four pairs of sessions in every round: the mean of the four would hang
    on each disturbed round, the sessions' own medians on the machine's drift. ``se`` is its logarithm's standard error
    (bootstrap over rounds), ``low`` and ``high`` the 99 % interval over rounds. ``floor`` is how far apart the same
    code came out in this comparison: what the differences A1 / A2 and B1 / B2, pooled over benchmarks and scaled to
    the mean of two sessions, exceed at any of its benchmarks in 5 % of comparisons (Bonferroni). ``resolution`` is the
    smallest difference that would have been called one.
    """
    if rounds.empty:
        return pd.DataFrame(columns=COLUMNS)
    found = [_differences(part) | {"optimizer": o, "dim": d} for (o, d), part in rounds.groupby(["optimizer", "dim"])]
    table = pd.DataFrame(found).reindex(columns=[*COLUMNS, "base_spread", "head_spread"])
    same = table[["base_spread", "head_spread"]].to_numpy(dtype=float).ravel()
    same = same[~np.isnan(same)]
    sessions = math.sqrt(np.mean(same**2) / 2) if len(same) else math.nan
    table["floor"] = math.expm1(sessions * stdtrit(max(1, len(same)), 1 - 0.025 / len(table)))
    return judge(table)[COLUMNS]


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Set ``low``, ``high``, ``resolution`` and ``verdict`` from what was measured: ``ratio``, ``se``, ``floor``."""
    half = table["se"] * stdtrit(table["rounds"].clip(lower=2) - 1, 0.995)
    table["low"], table["high"] = table["ratio"] * np.exp(-half), table["ratio"] * np.exp(half)
    table["resolution"] = np.maximum(table["floor"].clip(lower=THRESHOLD), np.expm1(half))
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    return table


def exit_status(table: pd.DataFrame) -> int:
    """Return 0 for fine or undecided, 1 for regressed, 3 where nothing was compared."""
    if not table["ratio"].notna().any():
        return NOTHING_MEASURED
    return REGRESSED if (table["verdict"] == "regressed").any() else 0


def _differences(part: pd.DataFrame) -> dict[str, float]:
    """One benchmark's logarithms: head less base, and each version's second session less its first."""
    head, base = part[part["session"].isin(HEAD)], part[part["session"].isin(BASE)]
    contended = part.loc[part["contended"], "round"].unique()
    row = {
        "base_ms": 1e3 * base["step_s"].median(),
        "head_ms": 1e3 * head["step_s"].median(),
        "head_over_limit": head["step_s"].median() / head["limit_s"].median(),
        "contended": len(contended),
        "rounds": 0,
    }
    wide = part.assign(log=np.log(part["step_s"])).pivot(index="round", columns="session", values="log")
    if not {*BASE, *HEAD} <= set(wide.columns):
        return row
    wide = wide.drop(contended).dropna()
    row["rounds"] = len(wide)
    if len(wide) < MIN_BLOCKS:
        return row
    pairs = np.stack([wide[b] - wide[a] for a in BASE for b in HEAD], axis=1)
    row |= {"ratio": float(np.exp(np.median(pairs))), "se": _standard_error(pairs)}
    return row | {
        f"{of}_spread": (wide[two] - wide[one]).median() for of, (one, two) in {"base": BASE, "head": HEAD}.items()
    }


def _standard_error(pairs: np.ndarray) -> float:
    """Bootstrap over rounds of the median over rounds and pairs, ``[rounds, pairs]``."""
    chosen = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLED, len(pairs)))
    return float(np.median(pairs[chosen].reshape(RESAMPLED, -1), axis=1).std())


def _verdict(row: Mapping[Hashable, float]) -> str:
    if math.isnan(row["base_ms"]):
        return "new"
    if math.isnan(row["head_ms"]):
        return "gone"
    if math.isnan(row["ratio"]):
        return "undecided"
    difference, practical = abs(math.log(row["ratio"])), math.log1p(THRESHOLD)
    if difference > math.log1p(row["resolution"]):
        return "regressed" if row["ratio"] > 1 else "improved"
    # two one-sided tests of equivalence, at 5 % over rounds; a floor above what matters could hide a difference
    largest = difference + row["se"] * stdtrit(row["rounds"] - 1, 0.95)
    return "unchanged" if max(largest, math.log1p(row["floor"])) < practical else "undecided"
