"""The data dictionary names every column of every table, and nothing else."""

import pytest

from stepscale.bench.records.columns import COLUMNS, column_of, key_of
from tests.support.every_table import columns_of_every_table

FILES = {
    "cubic",
    "times",
    "scaling",
    "shares",
    "factors",
    "slopes",
    "crossovers",
    "operations",
    "curves",
    "training",
    "targets",
    "quadratic",
    "curvature",
    "dampings",
    "versions",
}


def test_every_column_is_in_it_and_none_in_it_is_unused() -> None:
    found = columns_of_every_table()
    assert set(found) == {"cells", "runs"} | FILES
    used = {key_of(table, name) for table, names in found.items() for name in names}
    assert used == set(COLUMNS)


def test_a_tables_own_meaning_counts_there_alone() -> None:
    assert column_of("slopes", "dim").meaning == "the geometric middle of both"
    assert column_of("times", "dim") == column_of("cells", "dim")
    with pytest.raises(KeyError, match=r"slopes\.height has no unit and no meaning"):
        column_of("slopes", "height")


def test_units_are_those_of_the_names() -> None:
    units = {"_ms": "ms", "_mib": "MiB", "_j": "J", "_nats": "nats", "_s": "s", "gflop_per_s": "GFLOP/s"}
    for key, column in COLUMNS.items():
        expected = [unit for ending, unit in units.items() if key.endswith(ending) and "dim_in" not in key]
        assert not expected or column.unit.startswith(expected[-1]), key
