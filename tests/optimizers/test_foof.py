"""FOOF against solves with the dense input factor, closed forms and its paper's formulas, in float64."""

import math

import pytest
import torch

from stepscale.models import MLP
from stepscale.optimizers import FOOF, Relative
from tests.conftest import batch_of, generic_flow, gradients, well_conditioned
from tests.support.dense import homogeneous, layer_gradient, network, written

pytestmark = pytest.mark.numerical


def test_foof_solves_the_papers_toy() -> None:
    """Inputs (3, 1), (1, 0), labels 1, −1: one undamped step from 0 is (−1, 4), and fits both; (2, 1) does not."""
    model = MLP([2, 1], activation="tanh", output="gaussian", bias=False).double()
    with torch.no_grad():
        model.layers[0].weight.zero_()
    x = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    FOOF(model, damping=0.0, frame="euclidean")((x, torch.tensor([[1.0], [-1.0]], dtype=torch.float64)))
    (direction,) = gradients(model)
    torch.testing.assert_close(-direction, torch.tensor([[-1.0, 4.0]], dtype=torch.float64))


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_foof_is_a_solve_with_the_input_factor(frame: str) -> None:
    model, x = generic_flow(), batch_of(20)
    FOOF(model, damping=0.2, frame=frame)(x)
    for io in model.capture(x):
        W, b, d = io.layer.weight.detach(), io.layer.bias.detach(), 5
        rows = homogeneous(io.y if frame == "relative" else io.a)
        gradient = io.delta.T @ rows / 20
        gradient[:, :d] -= torch.eye(d, dtype=W.dtype) if frame == "relative" else torch.linalg.inv(W).T
        damped = rows.T @ rows / 20 + 0.2 * torch.eye(d + 1, dtype=W.dtype)
        D = torch.linalg.solve(damped, gradient.T).T
        if frame == "relative":
            D = torch.cat([D[:, :d] @ W, (D[:, :d] @ b + D[:, d]).unsqueeze(1)], dim=1)
        torch.testing.assert_close(written(io), D, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["tanh", "classifier"])  # layers that narrow and that widen: either association
def test_foof_is_a_solve_on_networks(name: str) -> None:
    model, batch = network(name, 20)
    FOOF(model, damping=0.2, frame="euclidean")(batch)
    for io in model.capture(batch):
        damped = homogeneous(io.a).T @ homogeneous(io.a) / 20
        damped.diagonal().add_(0.2)
        torch.testing.assert_close(written(io), torch.linalg.solve(damped, layer_gradient(io).T).T)


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_foof_is_the_relative_gradient_where_u_is_white(frame: str) -> None:
    model = generic_flow(4, 1, bias=False)
    W = model.layers[0].weight.detach()
    u = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64)).Q * math.sqrt(50)
    x = torch.linalg.solve(W, u.T).T
    FOOF(model, damping=0.0, frame=frame)(x)
    (got,) = gradients(model)
    Relative(model)(x)
    (expected,) = gradients(model)
    assert (got - expected).abs().max() < 1e-10


def test_closed_form_of_foof_on_one_gaussian_layer() -> None:
    """E = I − C⁻¹, C = E[u uᵀ]; and so is K-FAC's with A from data and G the model's, I."""
    model = generic_flow(4, 1, bias=False)
    x = torch.randn(200, 4, dtype=torch.float64) @ well_conditioned(4)
    u = x @ model.layers[0].weight.detach().T
    FOOF(model, damping=0.0)(x)
    (dW,) = gradients(model)
    E = dW @ torch.linalg.inv(model.layers[0].weight.detach())
    expected = torch.eye(4, dtype=torch.float64) - torch.linalg.inv(u.T @ u / 200)
    assert (E - expected).abs().max() < 1e-10


def test_foofs_damping_is_the_papers_over_the_batch() -> None:
    """ΔWᵀ = η (λ I + aᵀa)⁻¹ aᵀg (equation 6), sums over the batch: ours at λ/B and η/B, the gradient a mean."""
    model = MLP([4, 3], activation="tanh", output="gaussian", bias=False).double()
    x, t = batch_of(10, 4), batch_of(10, 3)
    a, g = model.capture((x, t))[0].a, model.capture((x, t))[0].delta
    paper = 30 * torch.linalg.solve(100 * torch.eye(4, dtype=torch.float64) + a.T @ a, a.T @ (g / 10)).T
    FOOF(model, damping=100 / 10, frame="euclidean")((x, t))
    torch.testing.assert_close(gradients(model)[0] * 30 / 10, paper)
