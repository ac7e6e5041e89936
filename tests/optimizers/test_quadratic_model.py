"""Steps by the quadratic model and KL clipping, against dense matrices in float64."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.models import MLP, Flow
from stepscale.optimizers import FOOF, KFAC, KLClipped, Layerwise, QuadraticStep, Schedule
from tests.conftest import batch_of, generic_flow, gradients
from tests.support.dense import dense_fisher, network

pytestmark = pytest.mark.numerical

DIRECTION = partial(KFAC, damping=0.5, frame="euclidean", statistics="data", schedule=Schedule(1, 1))


def parameters(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def flat_gradient(model: Any, direction: Any, batch: Any) -> Tensor:
    direction(batch)
    return torch.cat([g.flatten() for g in gradients(model)])


@pytest.mark.parametrize("name", ["tanh", "bernoulli", "classifier"])
def test_update_minimises_the_damped_quadratic_model(name: str) -> None:
    """Over the span of the direction and the last update: stationary, by the dense Fisher matrix."""
    model, batch = network(name, 20)
    step = QuadraticStep(model, DIRECTION, interval=None)
    last = torch.zeros_like(parameters(model))
    for k in range(3):
        before = parameters(model)
        gradient = flat_gradient(model, Layerwise(model), batch)
        curvature = dense_fisher(model, batch) + 0.5 * torch.eye(len(before), dtype=before.dtype)
        step(batch)
        written = torch.cat([p.grad.flatten() for p in model.parameters()])
        model.zero_grad()
        update = parameters(model) - before
        slope = curvature @ update + gradient
        assert abs(slope @ written) < 1e-8 * slope.norm() * written.norm()
        if k:
            assert abs(slope @ last) < 1e-8 * slope.norm() * last.norm()
        torch.testing.assert_close(update, step.coefficients[0] * written + step.coefficients[1] * last)
        last = update
    assert step.coefficients[1] != 0


def test_without_momentum_only_the_length_is_chosen() -> None:
    model, batch = network("tanh", 20)
    step = QuadraticStep(model, DIRECTION, momentum=False, interval=None)
    for _ in range(2):
        step(batch)
        assert step.coefficients[1] == 0


def test_on_a_quadratic_loss_one_step_is_newtons() -> None:
    """Linear regression, no damping to speak of: α = −1 and the loss is the least there is."""
    model = MLP([3, 2], activation="tanh", output="gaussian").double()
    x, t = batch_of(50, 3), batch_of(50, 2)
    direction = partial(FOOF, damping=1e-14, frame="euclidean")
    step = QuadraticStep(model, direction, interval=None)
    step((x, t))
    assert step.coefficients[0].item() == pytest.approx(-1, rel=1e-9)
    assert torch.cat([g.flatten() for g in _gradients_at(model, (x, t))]).norm() < 1e-9


def _gradients_at(model: Any, batch: Any) -> list[Tensor]:
    model.zero_grad()
    model.loss(batch).backward()
    return gradients(model)


def test_damping_falls_where_the_model_foretells_the_loss() -> None:
    """A quadratic loss is foretold but for λ, so λ shrinks by (19/20)⁵ every fifth step."""
    model = MLP([3, 2], activation="tanh", output="gaussian").double()
    x, t = batch_of(50, 3), batch_of(50, 2)
    step = QuadraticStep(model, partial(FOOF, damping=1e-3, frame="euclidean"), interval=5)
    for _ in range(4):
        step((x, t))
    assert step.damping == 1e-3
    step((x, t + 1))
    assert step.damping == pytest.approx(1e-3 * 0.95**5)


def test_damping_rises_where_the_loss_does_not_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network("tanh", 20)
    step = QuadraticStep(model, DIRECTION, interval=1)
    losses = iter([1.0, 2.0])  # before and after: it rose
    monkeypatch.setattr(model, "loss", lambda batch: torch.tensor(next(losses)))
    step(batch)
    assert step.damping == pytest.approx(0.5 / 0.95)


def test_a_loss_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network("tanh", 20)
    monkeypatch.setattr(model, "loss", lambda batch: torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match=r"damping=0\.5: raise damping"):
        QuadraticStep(model, DIRECTION, interval=1)(batch)


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_it_trains_a_flow(frame: str) -> None:
    torch.manual_seed(0)
    model = Flow(6).double()
    mix = torch.randn(6, 6, dtype=torch.float64)
    rows = torch.distributions.Laplace(0.0, 1.0).sample((2000, 6)).double() @ mix
    step = QuadraticStep(model, partial(KFAC, damping=10.0, frame=frame, schedule=Schedule(1, 5)))
    before = model.loss(rows).item()
    for k in range(40):
        step(rows[50 * k : 50 * (k + 1)])
    assert model.loss(rows).item() < before - 1


def test_state_restores_the_same_continuation() -> None:
    (model, batch), ends = network("tanh", 20), []
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for cut in (False, True):
        model.load_state_dict(start)
        step = QuadraticStep(model, DIRECTION)
        for _ in range(6):
            if cut:
                state, step = step.state_dict(), QuadraticStep(model, DIRECTION)
                step.load_state_dict(state)
            step(batch)
        ends.append((parameters(model), step.damping))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


@pytest.mark.parametrize(("kappa", "shortened"), [(1e-6, True), (1e6, False)])
def test_kl_clipping_bounds_the_direction(kappa: float, shortened: bool) -> None:
    model, x = generic_flow(), batch_of(20)
    D = flat_gradient(model, KFAC(model, damping=0.1, statistics="data"), x)
    gradient = flat_gradient(model, Layerwise(model), x)
    before = parameters(model)
    clipped = KLClipped(
        model, partial(KFAC, damping=0.1, statistics="data"), partial(torch.optim.SGD, lr=0.1), kappa=kappa
    )
    clipped(x)
    update = parameters(model) - before
    expected = min(1.0, math.sqrt(kappa / (0.1**2 * abs((D @ gradient).item()))))
    torch.testing.assert_close(update, -0.1 * expected * D)
    assert (expected < 1) == shortened


def test_options_out_of_range_are_named() -> None:
    model = generic_flow()
    with pytest.raises(ValueError, match="kappa must be positive, got 0"):
        KLClipped(model, KFAC, partial(torch.optim.SGD, lr=0.1), kappa=0)
    with pytest.raises(ValueError, match="got 0"):
        QuadraticStep(model, KFAC, interval=0)
