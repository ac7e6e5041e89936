"""Randomised low rank against known spectra and the expected error; K-FAC of full rank against K-FAC."""

import math

import pytest
import torch
from torch import Tensor

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.models import MLP, Flow
from stepscale.optimizers import KFAC
from stepscale.optimizers.core.low_rank import LowRank, after, before, randomized_eigh, randomized_inverse
from stepscale.optimizers.kronecker.kfac import factored_damping
from stepscale.optimizers.kronecker.two_sided import full_is_cheaper
from tests.conftest import batch_of, generic_flow, gradients
from tests.support.dense import EUCLIDEAN, homogeneous, layer_gradient, written

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
    low = randomized_inverse(M, shift, 3)
    assert isinstance(low, LowRank)
    partly = torch.linalg.eigvalsh(low.dense())
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


def formed(inverse: LowRank) -> Tensor:
    """The matrix itself, entry by entry of its definition."""
    return (torch.eye(len(inverse.U), dtype=torch.float64) - inverse.U @ torch.diag(inverse.s) @ inverse.U.T) / (
        inverse.shift
    )


def test_it_multiplies_as_the_matrix_that_it_is() -> None:
    M = randomized_inverse(spectrum(torch.linspace(0.1, 3, 12).double()), torch.tensor(0.5).double(), 3)
    assert isinstance(M, LowRank)
    X = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(after(X, M), X @ formed(M), rtol=0, atol=1e-12)
    torch.testing.assert_close(before(M, X.T), formed(M) @ X.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(after(X[:, :7], M), X[:, :7] @ formed(M)[:7], rtol=0, atol=1e-12)


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("log_det", ["exact", "stale"])
@pytest.mark.parametrize("bias", [True, False])
def test_on_a_flow_no_inverse_is_formed_and_the_direction_is_the_dense_one(
    frame: str, log_det: str, bias: bool
) -> None:
    """After the weights have moved: exact follows them, stale has the log-determinant's part of the inversion."""
    model, x, d = generic_flow(8, 2, bias=bias), batch_of(5, 8), 8
    step = KFAC(model, rank=3, frame=frame, log_det=log_det, statistics="data", damping=0.3)
    step(x)
    before_moving = [layer.weight.detach().clone() for layer in model.layers]
    biases = [None if layer.bias is None else layer.bias.detach().clone() for layer in model.layers]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    gradients(model)
    step(x)
    ios = model.capture(x)
    for io, applied, W_then, b_then in zip(ios, step.applied, before_moving, biases, strict=True):
        right, left = applied.right, applied.left
        assert isinstance(right, LowRank) and isinstance(left, LowRank)
        R, L, W = formed(right), formed(left), io.layer.weight.detach()
        rows = io.y if frame == "relative" else io.a
        rows = homogeneous(rows) if bias else rows
        D = L @ (io.delta.T @ rows / 5) @ R
        N = torch.zeros(d, d + bias, dtype=torch.float64)
        V = W if log_det == "exact" else W_then
        N[:, :d] = torch.eye(d) if frame == "relative" else torch.linalg.inv(V).T
        less = L @ N @ R
        if frame == "relative":
            b = io.layer.bias.detach() if bias else None
            D = to_parameters(D, W, b) - to_parameters(less, V, b if log_det == "exact" else b_then)
        else:
            D = D - less
        found = torch.cat([io.layer.weight.grad, io.layer.bias.grad.unsqueeze(1)], 1) if bias else io.layer.weight.grad
        torch.testing.assert_close(found, D, rtol=1e-10, atol=1e-10)


def to_parameters(D: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return D @ W if b is None else torch.cat([D[:, :-1] @ W, (D[:, :-1] @ b + D[:, -1]).unsqueeze(1)], dim=1)


@pytest.mark.parametrize("rows", [3, 200])  # the factors preconditioned, and the gradient
def test_on_a_network_the_direction_is_the_dense_one(rows: int) -> None:
    model, x = MLP([20, 16, 20], activation="tanh", output="gaussian").double(), batch_of(rows, 20)
    step = KFAC(model, rank=2, damping=0.1, **EUCLIDEAN)
    step(x)
    for io, applied in zip(model.capture(x), step.applied, strict=True):
        assert full_is_cheaper(rows, *io.layer.weight.shape, 4, 4) == (rows == 200)
        right, left = applied.right, applied.left
        assert isinstance(right, LowRank) and isinstance(left, LowRank)
        expected = formed(left) @ layer_gradient(io) @ formed(right)
        torch.testing.assert_close(written(io), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("log_det", ["exact", "stale"])
def test_in_the_relative_frame_no_work_is_cubic(log_det: str) -> None:
    """With statistics of data, as samples of a flow cost an LU: statistics, inversion and step are O(k d²)."""
    flops = []
    for dim in (256, 512):
        model, x = Flow(dim, 1), torch.randn(4, dim)
        step = KFAC(model, rank=4, statistics="data", log_det=log_det)
        with OperationLog() as log:
            step(x)
            step(x)
        flops.append(log.flops)
    assert math.log2(flops[1] / flops[0]) < 2.02


def test_at_more_than_half_of_the_width_the_matrix_is_formed() -> None:
    """Where it multiplies no faster in factors."""
    M, shift = spectrum(torch.linspace(0.1, 3, 12).double()), torch.tensor(0.5).double()
    assert isinstance(randomized_inverse(M, shift, 5), LowRank)
    assert isinstance(randomized_inverse(M, shift, 6), Tensor)


def test_a_layer_without_any_gradient_is_damped_all_the_same() -> None:
    shifts = factored_damping(torch.eye(3), torch.zeros(2, 2), 0.25)
    assert [shift.item() for shift in shifts] == [0.5, 0.5]
