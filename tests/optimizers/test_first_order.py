"""Momentum schedules against their definition, and the rates of first-order methods on a quadratic against theory."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepscale.models import Quadratic
from stepscale.optimizers import Layerwise, MomentumSchedule, averaged, pair

pytestmark = pytest.mark.numerical
ROWS = torch.zeros(1, 1)


def momenta(steps: int, interval: int, most: float) -> list[float]:
    """As the paper writes them."""
    return [min(1 - 2 ** (-1 - math.log2(t // interval + 1)), most) for t in range(steps)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_shifted_iterates_are_the_definitions(nesterov: bool) -> None:
    """Of an anharmonic function, through three rises of μ; judged at θ, and back at Θ to the bit."""
    torch.manual_seed(0)
    start = torch.randn(5, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    update = MomentumSchedule([parameter], lr=0.02, momentum=0.97, interval=10, nesterov=nesterov)

    def slope(at: Tensor) -> Tensor:
        return at**3 + torch.arange(1, 6) * at

    θ, v = start.clone(), torch.zeros(5, dtype=torch.float64)
    for μ in momenta(45, 10, 0.97):
        v = μ * v - 0.02 * slope(θ + μ * v if nesterov else θ)
        θ = θ + v
        parameter.grad = slope(parameter.detach())
        update.step()
        ahead = parameter.detach().clone()
        update.eval()
        torch.testing.assert_close(parameter.detach(), θ, rtol=1e-12, atol=1e-12)
        update.train()
        assert torch.equal(parameter.detach(), ahead)


def test_momentum_that_is_changed_goes_on_from_the_same_iterate() -> None:
    """By the definition, with gradients where the μ foretold leads; one parameter is frozen for some steps."""
    moving, pausing = (nn.Parameter(torch.linspace(1, 2, 3, dtype=torch.float64)) for _ in range(2))
    update = MomentumSchedule([moving, pausing], lr=0.02, momentum=0.97, interval=4)
    places = {p: (p.detach().clone(), torch.zeros(3, dtype=torch.float64), 0.0) for p in (moving, pausing)}
    for t, most in enumerate([0.97] * 6 + [0.3] * 6 + [0.9] * 6):
        update.param_groups[0]["momentum"], μ = most, momenta(t + 1, 4, most)[-1]
        for p, (θ, v, _) in places.items():
            p.grad = None if p is pausing and 4 <= t < 10 else p.detach() ** 3
            if p.grad is not None:
                v = μ * v - 0.02 * p.grad
                places[p] = θ + v, v, momenta(t + 2, 4, most)[-1]
        update.step()
        for p, (θ, v, foretold) in places.items():
            torch.testing.assert_close(p.detach(), θ + foretold * v, rtol=1e-12, atol=1e-12)
        update.eval()
        for p, (θ, _, _) in places.items():
            torch.testing.assert_close(p.detach(), θ, rtol=1e-12, atol=1e-12)
        update.train()


def test_no_training_goes_on_from_where_it_is_judged() -> None:
    """Neither by a step nor by a saved state; a state that is loaded brings the parameters that it was saved with."""
    model = Quadratic(4)
    step = pair(model, Layerwise, lambda parameters: MomentumSchedule(parameters, lr=0.1))
    step(ROWS)
    there, saved = model.theta.detach().clone(), deepcopy(step.state_dict())
    step(ROWS)
    step.update.eval()  # type: ignore[attr-defined]
    for deed in (lambda: step(ROWS), step.state_dict):
        with pytest.raises(RuntimeError, match=r"holds θ, from which no training goes on: call train\(\) before"):
            deed()
    model.load_state_dict({**model.state_dict(), "theta": there})
    step.load_state_dict(saved)
    step.update.train()  # type: ignore[attr-defined]
    assert torch.equal(model.theta, there)


def test_the_schedule_is_the_papers() -> None:
    update = MomentumSchedule([nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.999)
    from stepscale.optimizers.updates.nesterov import momentum_at

    found = [momentum_at(t, update.param_groups[0]) for t in (0, 250, 500, 1000, 5000, 50_000, 10**7)]
    assert found == pytest.approx([0.5, 0.75, 5 / 6, 0.9, 1 - 1 / 42, 1 - 1 / 402, 0.999])


def test_a_step_with_it_is_judged_apart() -> None:
    model = Quadratic(6)
    step = pair(model, Layerwise, lambda parameters: MomentumSchedule(parameters, lr=0.1))
    for _ in range(5):
        step(ROWS)
    assert [type(part) for part in averaged(step.update)] == [MomentumSchedule]
    with pytest.raises(ValueError, match=r"0 ≤ momentum < 1 and interval ≥ 1, got lr=0.1, momentum=1"):
        MomentumSchedule(model.parameters(), lr=0.1, momentum=1)


def measured(κ: float, update: object, steps: int) -> float:
    """−log of the factor a step by which the distance from the optimum falls, the first half left out."""
    model = Quadratic(10, κ).double()
    step = pair(model, Layerwise, update)  # type: ignore[arg-type]
    logs = []
    for _ in range(steps):
        step(ROWS)
        logs.append(math.log(model.theta.detach().norm().item()))
    half = np.arange(steps // 2, steps)
    return -float(np.polyfit(half, np.array(logs)[half], 1)[0])


def nesterovs(h: float, lr: float, μ: float) -> float:
    """Spectral radius of the two-step matrix of one eigenvalue: θ_{t+1} = (1 − lr h)((1 + μ) θ_t − μ θ_{t−1})."""
    matrix = np.array([[(1 + μ) * (1 - lr * h), -μ * (1 - lr * h)], [1, 0]])
    return float(np.abs(np.linalg.eigvals(matrix)).max())


@pytest.mark.parametrize("κ", [10.0, 100.0, 1000.0])
def test_rates_on_a_quadratic_are_those_of_theory(κ: float) -> None:
    """Gradient descent (κ − 1)/(κ + 1), heavy ball (√κ − 1)/(√κ + 1), Nesterov by its two-step matrix: within 2 %."""
    r, steps = math.sqrt(κ), int(12 * κ)
    lr = 2 / (1 + 1 / κ)
    found = measured(κ, lambda p: torch.optim.SGD(p, lr=lr), steps)
    assert found == pytest.approx(-math.log((κ - 1) / (κ + 1)), rel=0.02)
    # repeated eigenvalues at the best heavy ball: t ρᵗ, so that its slope is taken late
    best = (2 / (1 + 1 / r)) ** 2
    found = measured(κ, lambda p: torch.optim.SGD(p, lr=best, momentum=((r - 1) / (r + 1)) ** 2), int(100 * r))
    assert found == pytest.approx(-math.log((r - 1) / (r + 1)), rel=0.02)
    μ = (r - 1) / (r + 1)
    theory = -math.log(max(nesterovs(h, 1.0, μ) for h in np.geomspace(1 / κ, 1, 10)))
    found = measured(κ, lambda p: torch.optim.SGD(p, lr=1.0, momentum=μ, nesterov=True), int(100 * r))
    assert found == pytest.approx(theory, rel=0.02)


def test_the_quadratic_is_what_it_says() -> None:
    model = Quadratic(8, 50.0)
    levels = torch.linalg.eigvalsh(model.hessian.double())
    assert levels[0].item() == pytest.approx(1 / 50, rel=1e-4) and levels[-1].item() == pytest.approx(1, rel=1e-5)
    assert model.loss(ROWS).item() == pytest.approx(0.5 * levels.sum().item(), rel=1e-5)
    noisy, x = Quadratic(3, 4.0, noise=0.5), torch.randn(7, 3)
    away = noisy.theta.detach() - 0.5 * x
    plain = sum(0.5 * row @ noisy.hessian @ row for row in away) / 7
    torch.testing.assert_close(noisy.loss(x).detach(), plain)
    with pytest.raises(ValueError, match=r"condition ≥ 1 and noise ≥ 0, got dim=3, condition=0.5"):
        Quadratic(3, 0.5)
