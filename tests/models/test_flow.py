import math

import pytest
import torch
from scipy import stats

from stepscale.models import Flow, PLUFlow
from stepscale.models.flows import flow
from tests.conftest import batch_of, generic_flow

pytestmark = pytest.mark.numerical

ALL_FLOWS = pytest.mark.parametrize(
    "options",
    [{}, {"base": "logistic"}, {"bias": False}, {"alpha": 0.01}, {"alpha": 1.0}, {"depth": 1}],
    ids=str,
)


@ALL_FLOWS
def test_log_likelihood_equals_the_change_of_variables_by_brute_force(options: dict) -> None:
    model, x = generic_flow(**options), batch_of()
    density = stats.norm if model.base == "normal" else stats.logistic
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda r: model(r.unsqueeze(0)).squeeze(0), row)
        z = model(row.unsqueeze(0)).detach().numpy()
        expected = density.logpdf(z).sum() + math.log(abs(torch.linalg.det(jacobian)))
        assert model.log_prob(row.unsqueeze(0)).item() == pytest.approx(expected, abs=1e-10)


@ALL_FLOWS
@pytest.mark.parametrize("kind", [Flow, PLUFlow])
def test_jacobians_are_those_that_autodiff_finds(kind: type[Flow], options: dict) -> None:
    torch.manual_seed(1)
    model = kind(5, **{"depth": 3, **options}).double()
    x = batch_of()
    z, found = model.jacobians(x)
    torch.testing.assert_close(z, model(x))
    for row, jacobian in zip(x, found, strict=True):
        expected = torch.autograd.functional.jacobian(lambda r: model(r.unsqueeze(0)).squeeze(0), row)
        torch.testing.assert_close(jacobian, expected)


@ALL_FLOWS
def test_log_likelihood_is_the_sum_of_a_cheap_and_a_cubic_part(options: dict) -> None:
    model, x = generic_flow(**options), batch_of()
    total = model.log_prob_without_det(x) + model.log_abs_det()
    torch.testing.assert_close(total, model.log_prob(x), atol=0, rtol=0)
    torch.testing.assert_close(-total.mean(), model.loss(x), atol=0, rtol=0)


@ALL_FLOWS
def test_inverse_then_forward_returns_the_noise(options: dict) -> None:
    model = generic_flow(**options)
    z = 3 * batch_of(200)
    with torch.no_grad():
        x = model.inverse(z)
        rounding = 1e-14 * x.abs().max()  # at alpha=0.01 two inverse slopes of 100 put x at 1e5
        assert (model(x) - z).abs().max() < 1e-10 + rounding


def test_inverse_holds_where_torch_softplus_turns_into_the_identity() -> None:
    model = Flow(1, 2, alpha=0.01).double()
    y = torch.tensor([[-900.0], [-25.0], [0.0], [19.9], [20.1], [25.0], [900.0]], dtype=torch.float64)
    error = model._activation_inverse(model._activation(y)) / y.clamp(min=1) - y / y.clamp(min=1)
    assert error.abs().max() < 1e-12


@pytest.mark.parametrize("base", flow.Base)
def test_samples_have_the_noise_of_the_base(base: str) -> None:
    model = generic_flow(dim=2, depth=2, base=base)
    with torch.no_grad():
        z = model(model.sample(4000)).numpy()
    density = stats.norm if base == "normal" else stats.logistic
    for column in z.T:
        assert stats.kstest(column, density.cdf).pvalue > 1e-6  # at 1e-3 one seed in 250 would fail


@ALL_FLOWS
def test_capture_gives_the_gradient_of_the_determinant_free_loss(options: dict) -> None:
    model, x = generic_flow(**options), batch_of()
    (-model.log_prob_without_det(x).mean()).backward()
    for io in model.capture(x):
        torch.testing.assert_close(io.delta.T @ io.a / len(x), io.layer.weight.grad, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(io.layer(io.a), io.y)
        torch.testing.assert_close(io.a @ io.layer.weight.T, io.u)
        if io.layer.bias is not None:
            torch.testing.assert_close(io.delta.mean(0), io.layer.bias.grad, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dim", [16, flow.QR_LIMIT + 1])
def test_initial_weights_are_orthogonal_at_every_width(dim: int) -> None:
    weight = Flow(dim, 1).layers[0].weight.detach().double()
    assert (weight @ weight.T - torch.eye(dim)).abs().max() < 1e-5
    assert (weight - torch.eye(dim)).abs().max() > 0.01


def test_reflections_are_those_one_after_the_other() -> None:
    v = torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.float64), dim=0)
    want = torch.eye(9, dtype=torch.float64)
    for column in v.T:
        want = want - 2 * torch.outer(column, column) @ want
    left, right = flow.reflections(v)
    torch.testing.assert_close(torch.eye(9, dtype=torch.float64) - left @ right, want)


def test_products_of_the_limit() -> None:
    forward, backward, weighed = [(5, 8, 8)] * 3, [(10, 8, 8)] * 2 + [(5, 8, 8)], [(8, 5, 8)] * 3
    assert Flow(8, 3).products(5) == forward + backward + weighed


def test_products_of_the_limit_with_more_rows_than_dim() -> None:
    forward, backward, weighed = [(9, 8, 8)] * 3, [(9, 8, 8)] * 2, [(8, 9, 8)] * 3
    assert Flow(8, 3).products(9) == forward + backward + weighed + [(8, 8, 8)] * 3


@pytest.mark.parametrize("batch", [7, 8, 9, 40])
def test_no_association_of_the_relative_gradient_has_fewer_flops_than_the_limit(batch: int) -> None:
    dim, depth = 8, 3
    right = 2 * batch * dim**2  # u W, then δᵀ (u W)
    left = 2 * dim**3  # δᵀ u, then (δᵀ u) W
    flops = sum(2 * m * k * n for m, k, n in Flow(dim, depth).products(batch))
    assert flops == (3 * depth - 1) * 2 * batch * dim**2 + depth * min(left, right)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dim": 0}, "dim=0"), ({"alpha": 0.0}, "got 0.0"), ({"base": "cauchy"}, "normal, logistic, got 'cauchy'")],
)
def test_arguments_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Flow(**{"dim": 3, **options})
