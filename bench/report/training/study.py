"""What a section shows where its runs were made for it."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from stepscale.bench.report.style import Drawn


class Study(NamedTuple):
    """A part of a section that only some runs have, as ``Section`` has each; empty where a run has nothing of it."""

    figures: list[Drawn]
    findings: list[str]
    tables: dict[str, pd.DataFrame]
    files: dict[str, pd.DataFrame]
