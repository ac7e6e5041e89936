"""Lanczos in float64 against dense eigenvalues, random matrices' theory and closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from stepscale.models import Transformer
from stepscale.optimizers.hessian.lanczos import (
    heavy_ball,
    hessian_products,
    lanczos,
    largest_eigenvalue,
    spectral_density,
)
from tests.support.dense import network

pytestmark = pytest.mark.numerical


def symmetric(n: int) -> Tensor:
    torch.manual_seed(0)
    X = torch.randn(n, n, dtype=torch.float64)
    return X + X.T


def test_as_many_steps_as_dimensions_give_the_whole_spectrum() -> None:
    A, v = symmetric(30), torch.randn(30, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(A)
    found = lanczos(lambda x: A @ x, v, 30)
    torch.testing.assert_close(found.values, values, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.weights, (vectors.T @ v / v.norm()).square(), rtol=1e-8, atol=1e-8)


def test_quadrature_is_exact_for_the_moments_it_should_be() -> None:
    """k steps integrate polynomials up to degree 2 k − 1."""
    A, v = symmetric(30) / 10, torch.randn(30, dtype=torch.float64)
    found, power = lanczos(lambda x: A @ x, v, 4), v
    for degree in range(8):
        assert found.weights @ found.values**degree == pytest.approx(((v @ power) / (v @ v)).item(), abs=1e-10)
        power = A @ power


def test_it_ends_with_the_krylov_space() -> None:
    A = torch.diag(torch.tensor([1.0, 1, 1, 5, 5], dtype=torch.float64))
    found = lanczos(lambda x: A @ x, torch.ones(5, dtype=torch.float64), 5)
    torch.testing.assert_close(found.values, torch.tensor([1.0, 5], dtype=torch.float64))
    torch.testing.assert_close(found.weights, torch.tensor([0.6, 0.4], dtype=torch.float64))


def test_of_many_numbers_in_float32_it_takes_all_its_steps() -> None:
    """Float64, whose rounding is far off, is the oracle."""
    diagonal = torch.linspace(0, 1, 1_000_000)
    diagonal[7] = 5
    wide = diagonal.double()
    v = torch.ones(len(diagonal))
    found, exact = lanczos(lambda x: diagonal * x, v, 10), lanczos(lambda x: wide * x, v.double(), 10)
    assert len(found.values) == 10
    assert found.values[-1].item() == pytest.approx(
        exact.values[-1].item(), rel=1e-3
    )  # a sum of 1e6 numbers in float32: √n ε


def test_a_parameter_that_the_loss_does_not_use_has_no_curvature() -> None:
    model, batch = network("no bias")
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    gradient, times = hessian_products(model, batch)
    unused = [p is model.unused for p in model.parameters() for _ in range(p.numel())]
    assert sum(unused) == 2 and not gradient[unused].any() and not times(torch.ones_like(gradient))[unused].any()


def test_products_are_those_of_the_dense_hessian() -> None:
    model, batch = network("bernoulli")
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        y = functional_call(model, values, (batch,))
        return -model._target_log_prob(y, batch).mean()

    H, v, times = hessian(loss, theta), torch.randn_like(theta), hessian_products(model, batch)[1]
    torch.testing.assert_close(times(v), H @ v, rtol=1e-10, atol=1e-10)
    found = largest_eigenvalue(times, torch.randn_like(theta), len(theta))
    assert found == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-8)


def test_any_model_with_a_loss_has_hessian_products() -> None:
    model = Transformer(8, depth=1).double()
    n, text = sum(p.numel() for p in model.parameters()), torch.randint(0, 8, (2, 5))
    u, v = torch.randn(2, n, dtype=torch.float64)
    _, times = hessian_products(model, (text, text.roll(-1, 1)))
    assert (u @ times(v)).item() == pytest.approx((v @ times(u)).item(), rel=1e-8)


@pytest.mark.parametrize(("spike", "edge"), [(2.5, 2.5 + 1 / 2.5), (0.6, 2.0)])
def test_an_eigenvalue_leaves_the_bulk_as_random_matrices_do(spike: float, edge: float) -> None:
    """Baik, Ben Arous & Péché: θ of rank 1 on a Wigner matrix of edge 2 gives θ + 1/θ above θ = 1, and the edge below.

    The outlier's variance is 2 (1 − θ⁻²) / n: four standard deviations of the mean of six are 0.11.
    """
    torch.manual_seed(0)
    found = []
    for _ in range(6):
        A = wigner(400)
        A[0, 0] += spike
        found.append(largest_eigenvalue(lambda x, A=A: A @ x, torch.randn_like(A[0]), 100))
        assert found[-1] == pytest.approx(torch.linalg.eigvalsh(A)[-1].item(), rel=1e-6)
    assert sum(found) / 6 == pytest.approx(edge, abs=0.11)


def wigner(n: int) -> Tensor:
    """A symmetric matrix of random numbers whose eigenvalues fill −2 … 2."""
    X = torch.randn(n, n, dtype=torch.float64)
    return (X + X.T) / math.sqrt(2 * n)


def test_the_density_is_the_semicircle() -> None:
    torch.manual_seed(0)
    A = wigner(600)
    found = spectral_density(lambda x: A @ x, A[0], steps=20, probes=6)
    assert found.weights.sum().item() == pytest.approx(1)
    for degree, catalan in [(2, 1.0), (4, 2.0), (6, 5.0)]:
        assert (found.weights @ found.values**degree).item() == pytest.approx(catalan, rel=0.05)


def test_rates_of_heavy_ball_from_lanczos_are_the_best_on_a_quadratic() -> None:
    """With k = n they are the closed form to 1e-8; the iteration's slowest factor is then √ρ = (√κ − 1) / (√κ + 1)."""
    h = torch.logspace(-2, 0, 12, dtype=torch.float64)
    found = lanczos(lambda x: h * x, torch.ones_like(h), 12).values
    rate, momentum = heavy_ball(found[-1].item(), found[0].item())
    assert rate == pytest.approx(4 / (1 + 0.1) ** 2, rel=1e-8)
    assert momentum == pytest.approx((0.9 / 1.1) ** 2, rel=1e-8)
    one = torch.ones_like(h)
    two_step = torch.stack([torch.stack([1 + momentum - rate * h, -momentum * one]), torch.stack([one, 0 * one])])
    radius = torch.linalg.eigvals(two_step.permute(2, 0, 1)).abs().max().item()
    assert radius == pytest.approx(0.9 / 1.1, abs=1e-3)  # a double root: √ of the rounding


@pytest.mark.parametrize(("largest", "smallest"), [(1.0, 0.0), (1.0, 2.0), (1.0, -1.0)])
def test_rates_need_positive_eigenvalues(largest: float, smallest: float) -> None:
    with pytest.raises(ValueError, match=f"largest={largest:g} and smallest={smallest:g}"):
        heavy_ball(largest, smallest)


def test_a_start_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="a start that is not 0"):
        lanczos(lambda x: x, torch.zeros(3), 2)
