"""Simulated steps whose work is known, as a report judges them."""

import pandas as pd
import pytest

from stepscale.bench.records.tables import FIGURES
from stepscale.bench.report import scaling_tables as tables
from stepscale.bench.report.scaling_tables import Judged
from tests.support.known_work import table
from tests.support.reported import NAIVE, STEPS, lost, with_facts


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    naive = with_facts(table(NAIVE, dims=[64, 128, 256], noise=0.01, drift=0))
    few = table(
        {name: STEPS[name] for name in ("relative", "layerwise")}, dims=[128, 512], noise=0.01, drift=0, batch=10
    )
    few["batch"] = 10
    parts = [with_facts(table(STEPS, noise=0.01, drift=0)), naive, lost(naive, "too_slow", 512), with_facts(few)]
    return pd.concat(parts, ignore_index=True).astype(FIGURES)


@pytest.fixture(scope="module")
def judged(cells: pd.DataFrame) -> Judged:
    return tables.judge(cells)
