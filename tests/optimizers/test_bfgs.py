"""BFGS and its two dampings, in full and of limited memory, against products of matrices."""

import pytest
import torch
from torch import Tensor

from stepscale.optimizers.quasi_newton.bfgs import bfgs, doubly_damped
from stepscale.optimizers.quasi_newton.limited_memory import LimitedMemory
from tests.support.dense import bfgs_by_matrices

pytestmark = pytest.mark.numerical

Pair = tuple[Tensor, Tensor]


def test_a_tiny_pair_is_taken_as_another() -> None:
    """In float32, of a length of about 1e-12: 1 / (s·y)² is above all its numbers."""
    s = 1e-12 * torch.randn(5)
    y, H = s * (1 + torch.rand(5)), torch.eye(5)
    change, expected = bfgs(s, y, y), bfgs_by_matrices(H.double(), s.double(), y.double())
    for found in (H + change.U @ change.C @ change.U.T, LimitedMemory.empty(2, s).taking(s, y).times(H)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_double_damping_keeps_h_positive_definite_through_400_pairs(dtype: torch.dtype) -> None:
    """Whatever the pairs, and s·y ≥ μ₂ s·s of each that is taken; K-BFGS(L) of a hundred of them, too."""
    dim = 6
    H, limited = torch.eye(dim, dtype=dtype), LimitedMemory.empty(100, torch.zeros(dim, dtype=dtype))
    for _ in range(400):
        pair_there = torch.randn(dim, dtype=dtype), 3 * torch.randn(dim, dtype=dtype)
        s, y = doubly_damped(*pair_there, H.mv, 0.5)
        assert s @ y >= (0.5 - 1e-6) * s @ s > 0
        change = bfgs(s, y, H @ y)
        H = H + change.U @ change.C @ change.U.T
        torch.testing.assert_close(H @ y, s, rtol=1e-3, atol=1e-4)
        limited = limited.taking(*doubly_damped(*pair_there, limited.times, 0.5))
        formed = limited.times(torch.eye(dim, dtype=dtype))
        for matrix in (H, formed):
            assert torch.linalg.eigvalsh(matrix)[0] > 0


@pytest.mark.parametrize("kept", [1, 4, 9])
def test_limited_memory_is_the_recursion_over_its_pairs(kept: int) -> None:
    """From I on; of successive averages, which are nearly parallel, and of one pair without curvature, left out."""
    dim, pairs = 5, list[Pair]()
    s = y = torch.zeros(dim, dtype=torch.float64)
    Q = torch.diag(torch.linspace(0.6, 4, dim, dtype=torch.float64))
    limited = LimitedMemory.empty(kept, s)
    for step in range(12):
        move = 0.1 * torch.randn(dim, dtype=torch.float64)
        s, y = 0.9 * s + move, 0.9 * y + Q @ move
        there = (s, -y) if step == 6 else (s, y)
        limited, pairs = limited.taking(*there), [*pairs, there][-kept:]
        H = torch.eye(dim, dtype=torch.float64)
        for one in pairs:
            H = bfgs_by_matrices(H, *one) if one[0] @ one[1] > 0 else H
        torch.testing.assert_close(limited.times(torch.eye(dim, dtype=torch.float64)), H, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(limited.times(s), H @ s, rtol=1e-10, atol=1e-10)


def test_limited_memory_loses_no_more_than_rounding_of_nearly_parallel_pairs() -> None:
    """In float32: 40 successive averages, against the recursion in float64."""
    dim = 8
    s = y = torch.zeros(dim)
    Q = torch.diag(torch.logspace(-0.2, 2, dim))
    limited, H = LimitedMemory.empty(40, s), torch.eye(dim, dtype=torch.float64)
    for _ in range(40):
        move = 0.1 * torch.randn(dim)
        s, y = 0.9 * s + move, 0.9 * y + Q @ move
        limited, H = limited.taking(s, y), bfgs_by_matrices(H, s.double(), y.double())
    formed = limited.times(torch.eye(dim)).double()
    assert (formed - H).norm() < 1e-4 * H.norm()
