"""How far the same cell comes out differently in another process, by dim."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
from scipy import special

from stepscale.bench.records.schema import GROUP

CONFIDENCE = 0.95
PRIOR_DOF = 4  # weight of the run's variance beside a dim's own
SAME_CELL = [*GROUP, "optimizer", "dim"]  # but for the seed


def usable(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells whose figures speak of the method: measured undisturbed, on a device not known to wait for its host."""
    quiet = undisturbed(cells)
    return quiet[~quiet["launch_bound"].fillna(False)]


def undisturbed(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells measured while no other process took the machine from them."""
    measured = cells[cells["status"] == "ok"]
    return measured[~measured["contended"]]


class Spread(NamedTuple):
    """Standard deviation of a figure's log from process to process, and its degrees of freedom."""

    sd: float
    dof: int


NO_PRIOR = Spread(0.0, 0)


class Spreads(NamedTuple):
    """The spread over a whole run, and that at each dim: small steps vary by several times what large ones do."""

    run: Spread
    by_dim: dict[int, Spread]

    def at(self, dim: float) -> Spread:
        """Return the spread at a dim."""
        return self.by_dim.get(int(dim), self.run)


def spreads(cells: pd.DataFrame, column: str) -> Spreads:
    """Pool the variance of log ``column`` over seeds of otherwise equal cells: over the run, and by dim.

    Those that wait for their host do not count: they vary by 10 to 30 % on a GPU that is steady to 0.3 % itself.
    """
    return _spreads(usable(cells), column)


def spreads_of_waiting(cells: pd.DataFrame, column: str) -> Spreads:
    """Pool likewise the variance of the cells that wait for their host."""
    measured = undisturbed(cells)
    return _spreads(measured[measured["launch_bound"].fillna(False)], column)


def _spreads(measured: pd.DataFrame, column: str) -> Spreads:
    logs = measured[column].map(math.log).groupby([measured[axis] for axis in SAME_CELL])
    freedom = (logs.count() - 1).clip(lower=0)
    squares = (logs.var().fillna(0) * freedom).groupby("dim").sum()
    return moderated(squares, freedom.groupby("dim").sum())


def moderated(squares: pd.Series, dofs: pd.Series, prior: Spread = NO_PRIOR) -> Spreads:
    """Make spreads of sums of squares and their degrees of freedom, both by dim.

    A dim has few cells, so that its variance is moderated by the run's, as if that were of ``PRIOR_DOF`` degrees of
    freedom (Smyth 2004, "Linear models and empirical Bayes methods", section 3). The ``prior`` is counted as if it were
    data of the run, so that one process has a spread, too.
    """
    dof = int(dofs.sum()) + prior.dof
    if dof < 1:
        return Spreads(Spread(math.nan, 0), {})
    variance = (float(squares.sum()) + prior.dof * prior.sd**2) / dof
    own = (squares + PRIOR_DOF * variance) / (dofs + PRIOR_DOF)
    by_dim = {int(d): Spread(math.sqrt(own[d]), min(dof, int(dofs[d]) + PRIOR_DOF)) for d in dofs.index}
    return Spreads(Spread(math.sqrt(variance), dof), by_dim)


def half_width(means: Iterable[tuple[Spread, float]], comparisons: float = 1, confidence: float = CONFIDENCE) -> float:
    """Half the interval of a sum or difference of means, each of so many processes; infinite without repeats.

    Of that many ``comparisons`` (Bonferroni), so that all of them hold together with that ``confidence``; degrees of
    freedom by Welch 1947, "The generalization of Student's problem", Biometrika 34.
    """
    parts = list(means)
    if not all(spread.dof >= 1 and processes for spread, processes in parts):
        return math.inf
    variances = [spread.sd**2 / processes for spread, processes in parts]
    error = sum(variances)
    if not error > 0:
        return 0.0 if error == 0 else math.inf
    dof = error**2 / sum(own**2 / spread.dof for own, (spread, _) in zip(variances, parts, strict=True))
    return float(special.stdtrit(dof, 1 - (1 - confidence) / 2 / comparisons) * math.sqrt(error))
