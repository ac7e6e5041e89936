"""Rates learned from the Hessian, and Newton's direction in a Krylov space, against closed forms on a quadratic."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.models import Flow, Quadratic
from stepscale.optimizers import LanczosNewton, Layerwise, LearnedRates, pair
from tests.conftest import batch_of
from tests.support.dense import network

pytestmark = pytest.mark.numerical
ROWS = torch.zeros(1, 1)
SGD = partial(pair, direction=Layerwise, update=partial(torch.optim.SGD, momentum=0.5))


def quadratic(κ: float = 100.0, dim: int = 12) -> Quadratic:
    torch.manual_seed(0)
    model = Quadratic(dim, κ).double()
    axes = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    levels = κ ** -torch.linspace(1, 0, dim, dtype=torch.float64)
    model.hessian = (axes * levels) @ axes.T  # to the last digit, as it was not when it was cast to float32
    return model


def test_polyaks_rates_are_the_closed_form_where_all_eigenvalues_are_known() -> None:
    """(2 / (1 + 1/√κ))² and ((√κ − 1) / (√κ + 1))²; and the rate of convergence is then the best there is."""
    model = quadratic()
    step = LearnedRates(model, SGD, iterations=12, interval=1000, floor=1e-9)
    step(ROWS)
    group = step.update.param_groups[0]
    assert group["lr"] == pytest.approx((2 / 1.1) ** 2, rel=1e-8)
    assert group["momentum"] == pytest.approx((0.9 / 1.1) ** 2, rel=1e-8)
    for _ in range(400):
        step(ROWS)
    before = model.theta.detach().norm()
    for _ in range(100):
        step(ROWS)
    assert math.log(before / model.theta.detach().norm()) / 100 == pytest.approx(-math.log(0.9 / 1.1), rel=0.02)


def test_few_eigenvalues_are_floored_and_momentum_is_bounded() -> None:
    model = quadratic(1e6)
    model.hessian *= 4
    step = LearnedRates(model, SGD, iterations=12, floor=0.01, momentum=0.6, lr=0.5)
    step(ROWS)
    group = step.update.param_groups[0]
    assert group["lr"] == pytest.approx(0.5 * (2 / 2.2) ** 2, rel=1e-6) and group["momentum"] == 0.6


def test_cauchys_rate_is_that_of_the_parabola_along_the_gradient() -> None:
    model = quadratic()
    g = model.hessian.double() @ model.theta.detach()
    expected = (g @ g / (g @ model.hessian.double() @ g)).item()
    step = LearnedRates(model, SGD, rule="cauchy")
    step(ROWS)
    group = step.update.param_groups[0]
    assert group["lr"] == pytest.approx(expected, rel=1e-8) and group["momentum"] == 0.5


def test_rates_are_learned_every_interval_and_kept_in_between() -> None:
    model, batch = network("tanh")
    step, seen = LearnedRates(model, SGD, interval=3, iterations=4, lr=0.1), []
    for _ in range(7):
        step(batch)
        seen.append(step.update.param_groups[0]["lr"])
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[5] != seen[6]
    assert step.facts.period == 3
    other = LearnedRates(network("tanh")[0], SGD, interval=3, iterations=4, lr=0.1)
    other.load_state_dict(step.state_dict())
    assert other.calls == 7 and other.update.param_groups[0]["lr"] == seen[6]


def test_where_nothing_is_curved_rates_stay() -> None:
    model = quadratic()
    torch.nn.init.zeros_(model.theta)
    step = LearnedRates(model, partial(SGD, update=partial(torch.optim.SGD, lr=0.3)), rule="cauchy")
    step(ROWS)
    assert step.update.param_groups[0]["lr"] == 0.3


def dense_direction(H: Tensor, g: Tensor, damping: float) -> Tensor:
    values, vectors = torch.linalg.eigh(H)
    return vectors @ ((vectors.T @ g) / (values.abs() + damping))


def test_newtons_direction_on_all_vectors_is_the_dense_one() -> None:
    model = quadratic()
    H, g = model.hessian.double(), model.hessian.double() @ model.theta.detach()
    LanczosNewton(model, damping=0.1, iterations=12)(ROWS)
    torch.testing.assert_close(model.theta.grad, dense_direction(H, g, 0.1), rtol=1e-8, atol=1e-8)


def test_newtons_direction_on_few_vectors_is_that_of_the_projected_hessian() -> None:
    """On the span of g, H g, H² g it is saddle-free Newton; g has no part beside it."""
    torch.manual_seed(1)
    model = quadratic(1000.0)
    levels = torch.linspace(-1, 1, 12, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    model.hessian = (axes * levels) @ axes.T  # with directions of negative curvature
    H, g = model.hessian, model.hessian @ model.theta.detach()
    LanczosNewton(model, damping=0.1, iterations=3)(ROWS)
    Q = torch.linalg.qr(torch.stack([g, H @ g, H @ H @ g], dim=1)).Q
    torch.testing.assert_close(model.theta.grad, Q @ dense_direction(Q.T @ H @ Q, Q.T @ g, 0.1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [LanczosNewton, lambda model: LearnedRates(model, SGD, rule="cauchy")])
def test_where_the_parameters_have_diverged_so_has_the_run(make: Any) -> None:
    """``classify`` takes a ``FloatingPointError`` for diverged, and a ``ValueError`` for a fault."""
    model = quadratic()
    step = make(model)
    step(ROWS)
    with torch.no_grad():
        model.theta[0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite: lower the learning rate"):
        for _ in range(100):
            step(ROWS)


def test_a_flow_has_them_too() -> None:
    torch.manual_seed(0)
    model, x = Flow(5).double(), batch_of(50, 5)
    before = model.loss(x).item()
    step = pair(model, partial(LanczosNewton, damping=1.0), partial(torch.optim.SGD, lr=0.5))
    for _ in range(3):
        step(x)
    assert model.loss(x).item() < before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr > 0, interval ≥ 1 and iterations ≥ 1, got lr=0.0"),
        ({"floor": 2.0}, "0 < floor ≤ 1 and 0 ≤ momentum < 1, got 2.0 and 0.95"),
        ({"rule": "newton"}, "rule must be one of polyak, cauchy, got 'newton'"),
        ({"step": partial(pair, direction=Layerwise, update=torch.optim.Adam)}, "Adam has no momentum to learn"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedRates(quadratic(), **{"step": SGD, **options})
    with pytest.raises(ValueError, match="damping must be positive and iterations at least 1, got 0 and 10"):
        LanczosNewton(quadratic(), damping=0)
