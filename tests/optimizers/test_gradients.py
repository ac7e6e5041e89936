"""Exact and relative gradients against each other and against their definitions, in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from stepscale.models import Flow, FlowDensity
from stepscale.optimizers import Jacobian, Layerwise, Relative, pair
from stepscale.optimizers.exact.autodiff import check_log_dets
from tests.conftest import batch_of, generic_flow, gradients, well_conditioned

pytestmark = pytest.mark.numerical

FLOWS = pytest.mark.parametrize("options", [{}, {"base": "logistic"}, {"bias": False}, {"depth": 1}], ids=str)


def explicit_gradients(model: Flow, x: Tensor) -> list[Tensor]:
    """δᵀa/B − W⁻ᵀ and mean δ, from the capture and an inverse."""
    found = []
    for io in model.capture(x):
        found.append(io.delta.T @ io.a / len(x) - torch.linalg.inv(io.layer.weight.detach()).T)
        if io.layer.bias is not None:
            found.append(io.delta.mean(0))
    return found


@FLOWS
def test_three_exact_gradients_agree(options: dict) -> None:
    model, x = generic_flow(**options), batch_of()
    expected = explicit_gradients(model, x)
    for direction in (Jacobian(model), Layerwise(model)):
        direction(x)
        for got, want in zip(gradients(model), expected, strict=True):
            assert (got - want).abs().max() < 1e-10


@FLOWS
def test_a_model_without_jacobians_of_its_own_has_them_differentiated(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = generic_flow(**options), batch_of()
    expected = explicit_gradients(model, x)
    monkeypatch.setattr(FlowDensity, "jacobians", None)
    Jacobian(model)(x)
    for got, want in zip(gradients(model), expected, strict=True):
        assert (got - want).abs().max() < 1e-10


@FLOWS
def test_plain_relative_gradient_is_the_gradient_times_wt_w(options: dict) -> None:
    model, x = generic_flow(**options), batch_of()
    Layerwise(model)(x)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            W = parameter.detach()
            parameter.grad = parameter.grad @ W.T @ W
    expected = gradients(model)
    Relative(model, bias="plain")(x)
    for got, want in zip(gradients(model), expected, strict=True):
        assert (got - want).abs().max() < 1e-10


@pytest.mark.parametrize("bias", ["affine", "official"])
def test_affine_relative_gradient_is_theta_grad_times_theta_t_theta(bias: str) -> None:
    model, x = generic_flow(), batch_of()
    Layerwise(model)(x)
    expected = []
    for layer in model.layers:
        theta = torch.eye(6, dtype=torch.float64)
        theta[:5, :5], theta[:5, 5] = layer.weight.detach(), layer.bias.detach()
        gradient = torch.zeros(6, 6, dtype=torch.float64)
        gradient[:5, :5], gradient[:5, 5] = layer.weight.grad, layer.bias.grad
        product = gradient @ theta.T @ theta
        # the released code leaves out the −b that the log-determinant contributes to db
        decay = layer.bias.detach() if bias == "official" else 0
        expected += [product[:5, :5], product[:5, 5] + decay]
    gradients(model)
    Relative(model, bias=bias)(x)
    for got, want in zip(gradients(model), expected, strict=True):
        assert (got - want).abs().max() < 1e-10


def test_relative_training_is_equivariant_to_mixing_the_data() -> None:
    model, other = generic_flow(bias=False), generic_flow(bias=False)
    other.load_state_dict(model.state_dict())
    M = well_conditioned(5)
    with torch.no_grad():
        first = other.layers[0].weight
        first.copy_(first @ torch.linalg.inv(M))
    sgd = partial(torch.optim.SGD, lr=1e-2)
    steps = pair(model, Relative, sgd), pair(other, Relative, sgd)
    for _ in range(20):
        x = batch_of()
        steps[0](x)
        steps[1](x @ M.T)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x @ M.T), atol=1e-10, rtol=1e-10)


def test_wrong_batched_log_determinants_are_refused() -> None:
    """As torch's are on CPU after ``torch.set_num_threads``: off by 27 and more."""
    matrices = torch.randn(4, 5, 5, dtype=torch.float64)
    log_dets = torch.linalg.slogdet(matrices).logabsdet
    check_log_dets(matrices, log_dets)
    log_dets[3] += 27
    with pytest.raises(RuntimeError, match="off by 27: set threads by OMP_NUM_THREADS"):
        check_log_dets(matrices, log_dets)


def test_unknown_bias_is_named() -> None:
    with pytest.raises(ValueError, match="plain, affine, official, got 'none'"):
        Relative(Flow(3), bias="none")


@pytest.mark.parametrize("direction", [Jacobian, Relative])
def test_a_model_without_the_needed_method_is_refused(direction: type) -> None:
    with pytest.raises(TypeError, match=r"needs Linear\.(base_log_prob|capture)"):
        direction(torch.nn.Linear(3, 3))
