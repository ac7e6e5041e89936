"""Randomised low rank against known spectra and the expected error; K-FAC of full rank against K-FAC."""

import math

import pytest
import torch
from torch import Tensor

from stepscale.optimizers import KFAC
from stepscale.optimizers.core.low_rank import randomized_eigh, randomized_inverse
from stepscale.optimizers.kronecker.kfac import factored_damping
from tests.conftest import batch_of, generic_flow, gradients

pytestmark = pytest.mark.numerical


def spectrum(values: Tensor) -> Tensor:
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return (Q * values) @ Q.T


def test_a_matrix_of_low_rank_is_found_exactly() -> None:
    M = spectrum(torch.cat([torch.arange(1.0, 6), torch.zeros(25)]).double())
    values, vectors = randomized_eigh(M, 5)
    torch.testing.assert_close((vectors * values) @ vectors.T, M, atol=1e-10, rtol=0)
    torch.testing.assert_close(values, torch.arange(1.0, 6).double())


def test_the_error_is_within_the_expected_bound() -> None:
    """Theorem 10.5 of Halko et al.: E‖M − QQᵀM‖_F ≤ √(1 + k/(p−1)) (Σ_{j>k} σ_j²)^½ without power iterations."""
    values, k, p = 0.8 ** torch.arange(40, dtype=torch.float64), 8, 6
    errors = []
    for _ in range(30):
        M = spectrum(values)
        _, vectors = randomized_eigh(M, k + p, oversampling=0, power=0)
        errors.append(torch.linalg.matrix_norm(M - vectors @ vectors.T @ M).item())
    tail = values.sort().values[: 40 - k].square().sum().sqrt()
    assert sum(errors) / 30 <= math.sqrt(1 + k / (p - 1)) * tail
    with_power = randomized_eigh(spectrum(values), k)[0]
    torch.testing.assert_close(with_power, values[:k].flip(0), rtol=1e-3, atol=0)


def test_low_rank_inverse_is_exact_at_full_rank_and_leaves_the_complement_to_the_damping() -> None:
    M = spectrum(torch.linspace(0.1, 3, 12).double())
    shift = torch.tensor(0.5, dtype=torch.float64)
    exact = torch.linalg.inv(M + shift * torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(randomized_inverse(M, shift, 12), exact)
    partly = torch.linalg.eigvalsh(randomized_inverse(M, shift, 3))
    torch.testing.assert_close(partly[-9:], torch.full((9,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_kfac_of_full_rank_is_kfac(frame: str) -> None:
    model, x = generic_flow(), batch_of(20)
    found = []
    for rank in (None, 6):
        KFAC(model, rank=rank, frame=frame, statistics="data")(x)
        found.append(gradients(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_without_any_gradient_is_damped_all_the_same() -> None:
    shifts = factored_damping(torch.eye(3), torch.zeros(2, 2), 0.25)
    assert [shift.item() for shift in shifts] == [0.5, 0.5]
