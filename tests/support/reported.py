"""Steps whose work is known, as tables that a report is made of."""

import re

import pandas as pd

from stepscale.bench.records.tables import FIGURES
from tests.support.known_work import Step

STEPS = {
    "relative": Step(),
    "relative_adam": Step(products=1.25),
    "layerwise": Step(0.74, speeding_up=700),
    "adam": Step(0.74, speeding_up=700),
    "kfac": Step(0.1, products=2.0),
}
NAIVE = {"naive": Step(0.95)}


def with_facts(cells: pd.DataFrame) -> pd.DataFrame:
    """Add what a report shows and no analysis asks for."""
    facts = {"peak_mib": cells["dim"] / 10, "cheap_ms": cells["step_ms"], "peak_ms": cells["step_ms"], "period": 1.0}
    return cells.assign(**facts, composed=False, repeats=True, operations=10.0)


def lost(cells: pd.DataFrame, status: str, dim: int) -> pd.DataFrame:
    """Return the last of the cells as one that was not measured, at another dim."""
    kept = ["model", "data", "batch", "depth", "dtype", "device", "threads", "machine", "optimizer", "seed", "task"]
    row = (
        dict.fromkeys(cells.columns) | cells.iloc[-1][kept].to_dict() | {"dim": dim, "status": status, "reason": "made"}
    )
    return pd.DataFrame([row]).astype(FIGURES)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
