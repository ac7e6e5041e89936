"""Other packages' optimizers, and which of them can be built here."""

import pytest

from stepscale.bench.cells.build import missing
from stepscale.bench.cells.identity import targets
from stepscale.bench.config import CONF
from tests.support.compose import composed

LIBRARY = sorted(f"library/{path.stem}" for path in (CONF / "optimizer" / "library").glob("*.yaml"))


def need(name: str) -> None:
    """Skip a test of an optimizer that this environment lacks: its package, or torch's Muon before 2.9."""
    for target in targets(composed(f"optimizer={name}")["optimizer"]):
        if said := missing(target):
            pytest.skip(said)
