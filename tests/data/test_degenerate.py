"""Data without a bounded likelihood, each kind beside plain normal rows."""

import pytest
import torch
from torch import Tensor

from stepscale.bench.data import mixture, photos, toy
from stepscale.bench.data.degenerate import faults

pytestmark = pytest.mark.numerical


def normal(rows: int = 3_000, dim: int = 8) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))


def with_columns(*columns: int, values: Tensor) -> Tensor:
    rows = normal()
    rows[:, list(columns)] = values
    return rows


def outlier(value: float) -> Tensor:
    rows = normal()
    rows[7, 2] = value
    return rows


X = normal()
ONE_HOT = torch.eye(3)[torch.arange(3_000) % 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_columns(3, values=torch.full((3_000, 1), 0.1)), "column 3 is constant"),
        (with_columns(3, 5, values=torch.ones(3_000, 2)), "2 columns are constant, the first is column 3"),
        (with_columns(5, values=X[:, 2:3]), "column 5 is column 2 but for shift and scale"),
        (with_columns(5, values=7 - 0.01 * X[:, 2:3]), "column 5 is column 2 but for shift and scale"),
        (with_columns(5, values=X[:, 1:2] + X[:, 2:3]), "column 5 is a sum of multiples of others"),
        (with_columns(0, 1, 2, values=ONE_HOT), "3 columns repeat their values, the first is column 0; column 2 is a"),
        (with_columns(4, values=(3 * X[:, 4:5]).round()), "column 4 repeats its values"),
        ((40 * X + 128).round(), "8 columns repeat their values, the first is column 0"),  # pixels, not dequantised
        (with_columns(4, values=X[:, 4:5].relu() * (X[:, 4:5] > 0.1)), "column 4 repeats its values"),
    ],
)
def test_a_likelihood_without_an_upper_bound_is_told_by_the_data(rows: Tensor, message: str) -> None:
    found = faults(rows)
    assert found.unbounded is not None and found.unbounded.startswith(message)
    assert found.unscaled is None


@pytest.mark.parametrize("rows", [with_columns(6, values=1e-4 * X[:, 6:7]), X * torch.tensor([1.0] * 7 + [2e3])])
def test_columns_of_too_different_scales_are_named(rows: Tensor) -> None:
    found = faults(rows)
    assert found.unbounded is None
    assert found.unscaled is not None and "times the deviation of column" in found.unscaled


def test_an_outlier_is_named_though_no_sample_need_hold_it() -> None:
    found = faults(outlier(-1e8))
    assert found.unbounded is None
    assert found.unscaled is not None and "column 2 has an outlier" in found.unscaled


PLAIN = {
    "normal": X,
    "shifted": 1_000 + X,
    "scaled": X * torch.logspace(-1, 1, 8),
    "fewer rows than columns": normal(20, 50),
    "three rows": normal(3, 4),
    "correlated": with_columns(5, values=X[:, 2:3] + 1e-3 * X[:, 5:6]),
    "cauchy": torch.tan(torch.pi * (torch.rand(3_000, 8, generator=torch.Generator().manual_seed(0)) - 0.5)),
    "photos": photos(64, 3_000, seed=0).train,
    "mixture": mixture(16, 3_000, seed=0).train,
    "moons": toy(2, 3_000, seed=0).train,
}


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_said_of_plain_data(name: str) -> None:
    assert faults(PLAIN[name]) == (None, None)
