"""Whether an upgrade has made steps slower: pure functions of two tables of cells (``tables.load``) of one machine."""

from __future__ import annotations

import math

import pandas as pd

from stepscale.bench.analysis.factors import verdict
from stepscale.bench.analysis.process_variance import SAME_CELL, Spread, half_width, spreads, usable
from stepscale.bench.analysis.step_times import geometric_mean

# What the processes of a run have in common, of the log of a step's time: the same code again on the same quiet machine
# is off by more than they vary. In results/ten-runs it is 2.1 % beyond what they make (sd of the five).
DAY = Spread(0.021, 4)
COLUMNS = [*SAME_CELL, "before_ms", "after_ms", "times", "low", "high", "limit_times", "verdict"]


def compared(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """One row a (group, optimizer, dim) that both tables have: ``times`` = step time after / before.

    It is of geometric means over seeds. Its 95 % interval is over processes, each table with its own spread, and over
    the day of each (``DAY``), which no further seed lessens. A table without repeats has no spread, and nothing is
    decided. ``limit_times`` is the same of the limit: where it moves as the step does, the machine or its library of
    products has changed, and not the step.
    """
    measured = [usable(table) for table in (before, after)]
    spread = [spreads(table, "step_ms") for table in (before, after)]
    by_cell = [dict(list(table.groupby(SAME_CELL))) for table in measured]
    shared = [key for key in by_cell[0] if key in by_cell[1]]
    rows = []
    for key in shared:
        own = [cells[key] for cells in by_cell]
        dim = int(own[0]["dim"].iloc[0])
        one, other = (geometric_mean(part["step_ms"]) for part in own)
        limits = [geometric_mean(part["limit_ms"]) for part in own]
        of = [(found.at(dim), len(part)) for found, part in zip(spread, own, strict=True)]
        log, half = math.log(other / one), half_width([*of, (DAY, 1), (DAY, 1)])
        ends = [math.exp(log + by) for by in (0, -half, half)]
        rows.append([*key, one, other, *ends, limits[1] / limits[0], verdict(-log, half)])
    return pd.DataFrame(rows, columns=COLUMNS)
