"""Ways around the log-determinant's gradient, against the exact one in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.bench.notes import Notes
from stepscale.bench.records.schema import Gradient
from stepscale.bench.timing.gradient_cosine import agreement
from stepscale.bench.timing.workload import Workload
from stepscale.models import Autoencoder, Flow, PLUFlow
from stepscale.optimizers import (
    ExplicitInverse,
    Layerwise,
    Relative,
    RelativeSGD,
    SelfNormalizing,
    StochasticTrace,
    pair,
)
from tests.conftest import batch_of, generic_flow, gradients

pytestmark = pytest.mark.numerical


def test_the_explicit_inverse_is_the_exact_gradient() -> None:
    model, x = generic_flow(), batch_of()
    Layerwise(model)(x)
    expected = gradients(model)
    ExplicitInverse(model)(x)
    for got, want in zip(gradients(model), expected, strict=True):
        assert (got - want).abs().max() < 1e-10


def test_the_stale_inverse_is_of_its_last_refresh() -> None:
    model, x = generic_flow(), batch_of()
    step, found, weights = ExplicitInverse(model, interval=3), [], []
    assert step.facts.period == 3
    for _ in range(4):
        weights.append(model.layers[0].weight.detach().clone())
        step(x)
        io = model.capture(x)[0]
        found.append(io.delta.T @ io.a / len(x) - gradients(model)[0])
        with torch.no_grad():
            model.layers[0].weight.add_(torch.randn(5, 5, dtype=torch.float64), alpha=0.1)
    for got, since in zip(found, (0, 0, 0, 3), strict=True):
        assert (got - torch.linalg.inv(weights[since]).T).abs().max() < 1e-10


@pytest.mark.parametrize("probes", [1, 4])
def test_the_stochastic_trace_is_unbiased(probes: int) -> None:
    model, x = generic_flow(3, 2), batch_of(7, 3)
    step, draws, n = StochasticTrace(model, probes), [], 2000
    for _ in range(n):
        step(x)
        draws.append(gradients(model)[0])
    ExplicitInverse(model)(x)
    drawn, exact = torch.stack(draws), gradients(model)[0]
    assert ((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / math.sqrt(n) + 1e-9).all()
    # of signs, the variance of (V ε εᵀ)_ij is Σ_{k≠j} V_ik², and a probe's share of it
    V = torch.linalg.inv(model.layers[0].weight.detach()).T
    expected = (V.square().sum(1, keepdim=True) - V.square()) / probes
    # five deviations: that of a variance of n draws is √(2/n) of it, if normal, and signs spread less
    torch.testing.assert_close(drawn.var(0), expected, rtol=5 * math.sqrt(2 / n), atol=1e-3)


def test_what_self_normalizing_learns_tends_to_the_inverse() -> None:
    model = generic_flow(4, 1)
    step = SelfNormalizing(model, rate=1.0)
    x = batch_of(200, 4)
    step(x)
    ExplicitInverse(model)(x)
    exact = gradients(model)
    step(x)  # R starts as the inverse
    for got, want in zip(gradients(model), exact, strict=True):
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        model.layers[0].weight.add_(torch.randn(4, 4, dtype=torch.float64), alpha=0.1)
    W = model.layers[0].weight.detach()
    errors = []
    for _ in range(2000):
        step(x)
        errors.append((step.inverses[0] @ W - torch.eye(4)).abs().max().item())
    assert errors[0] > 1e-2 and errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("direction", [ExplicitInverse, StochasticTrace, SelfNormalizing])
def test_a_model_without_log_determinants_is_refused(direction: Any) -> None:
    with pytest.raises(TypeError, match=r"needs layers with log\|det W\| in the loss"):
        direction(Autoencoder(5, 2))(torch.randn(3, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExplicitInverse(Flow(3), interval=0), "interval must be at least 1 step, got 0"),
        (lambda: StochasticTrace(Flow(3), probes=0), "probes must be at least 1, got 0"),
        (lambda: SelfNormalizing(Flow(3), rate=2.0), r"rate must lie in \(0, 2\), got 2.0"),
    ],
)
def test_options_out_of_range_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def workload(model: Any, direction: Any, batch: Tensor, lr: float = 1e-3) -> Workload:
    return Workload(model, pair(model, direction, lambda p: torch.optim.SGD(p, lr=lr)), [batch])


def test_agreement_with_the_exact_gradient() -> None:
    model, x = generic_flow(), batch_of(20)
    exact = agreement(workload(model, ExplicitInverse, x), 5, Notes())
    assert exact.log_det == "exact" and exact.cosine == pytest.approx(1)
    stale = agreement(workload(model, lambda m: ExplicitInverse(m, interval=5), x, lr=0.05), 5, Notes())
    assert stale.log_det == "stale" and 0 < stale.cosine < 0.9999
    stochastic = agreement(workload(model, StochasticTrace, x), 5, Notes())
    assert stochastic.log_det == "stochastic" and stochastic.cosine < 0.99
    model.zero_grad()
    Layerwise(model)(x)
    euclidean = torch.cat([g.flatten() for g in gradients(model)])
    Relative(model)(x)
    relative = torch.cat([g.flatten() for g in gradients(model)])
    found = agreement(workload(model, Relative, x), 5, Notes()).cosine
    assert found == pytest.approx((euclidean @ relative / euclidean.norm() / relative.norm()).item())


def test_agreement_of_what_has_none() -> None:
    model, x = generic_flow(), batch_of(20)
    fused = Workload(model, RelativeSGD(model, lr=1e-3), [x])
    assert agreement(fused, 5, Notes()) == Gradient(log_det="exact", cosine=None)
    assert agreement(workload(model, Layerwise, x), 10_000, Notes()) == Gradient(log_det="exact", cosine=None)
    factored = agreement(workload(PLUFlow(5).double(), Layerwise, x), 5, Notes())
    assert factored.log_det == "restricted" and factored.cosine == pytest.approx(1)
    network = Autoencoder(5, 2).double()
    found = agreement(workload(network, Layerwise, x), 5, Notes())
    assert found.log_det is None and found.cosine == pytest.approx(1)
