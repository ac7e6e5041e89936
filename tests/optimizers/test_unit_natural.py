"""The natural gradient by units against dense Fisher matrices in float64, and what it buys."""

import math

import pytest
import torch
from torch import Tensor

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.data import lines
from stepscale.models import Helmholtz
from stepscale.optimizers import EstimatedGradient, UnitNatural, pair
from stepscale.optimizers.fisher.unit_natural import by_inputs, by_rows
from tests.support.helmholtz import every_state, log_p, machine

pytestmark = pytest.mark.numerical


def test_fisher_matrix_of_a_belief_net_is_block_diagonal_by_units() -> None:
    """E[s sᵀ] over all 64 states of a 3-2-1 net, s by autograd, against a block a unit; the step is its inverse's."""
    model, α = machine(), 0.1
    states = every_state(model)
    of_p = [model.generative[0].weight, model.generative[0].bias, model.generative[1].weight, model.generative[1].bias]
    layers = [*model.generative, model.prior]
    likely = log_p(model, states).detach().exp()
    scores = torch.stack([
        torch.cat([part.flatten() for part in torch.autograd.grad(one, [*of_p, model.prior.weight], retain_graph=True)])
        for one in log_p(model, states)
    ])  # fmt: skip
    dense = scores.T @ (likely[:, None] * scores)
    # the same in the order of the units, a row of ā each
    order, start = [], 0
    for layer in layers:
        m, n = layer.weight.shape
        weights, biases = start + torch.arange(m * n).view(m, n), start + m * n + torch.arange(m).view(m, 1)
        order.append((weights if layer.bias is None else torch.cat([weights, biases], 1)).flatten())
        start += m * n + (0 if layer.bias is None else m)
    place = torch.cat(order)
    F = dense[place][:, place]
    slope = torch.randn(len(F), dtype=torch.float64)
    expected = (1 + α) * torch.linalg.solve(F + α * torch.eye(len(F), dtype=torch.float64), slope)
    ones, parts, found = states[0].new_ones(64, 1), slope.split([len(own) for own in order]), []
    for layer, a, part in zip(layers, [states[1], states[2], ones], parts, strict=True):
        inputs = a if layer.bias is None else torch.cat([a, ones], 1)
        q = torch.sigmoid(layer(a)).detach()
        spread = 64 * likely[:, None] * q * (1 - q)
        found.append(by_inputs(part.view(len(q[0]), -1), inputs, spread, α).flatten())
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-12, atol=1e-12)
    blocks = [
        len(own) // layer.out_features
        for own, layer in zip(order, layers, strict=True)
        for _ in range(layer.out_features)
    ]
    inside = torch.block_diag(*(torch.ones(size, size, dtype=torch.float64) for size in blocks))
    assert (F * (1 - inside)).abs().max() < 1e-12 < F.abs().max()


def rows(R: int, m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(R)
    inputs = torch.cat([(torch.rand(R, n - 1, dtype=torch.float64) < 0.5).double(), torch.ones(R, 1).double()], 1)
    q = torch.rand(R, m, dtype=torch.float64)
    return torch.randn(m, n, dtype=torch.float64), inputs, q * (1 - q)


@pytest.mark.parametrize(("R", "m", "n"), [(5, 3, 9), (30, 4, 6), (1, 2, 3)])
@pytest.mark.parametrize("solve", [by_inputs, by_rows])
def test_both_forms_are_the_dense_solve_of_each_unit(R: int, m: int, n: int, solve: object) -> None:
    slope, inputs, spread = rows(R, m, n)
    α, expected = 0.2, []
    for j in range(m):
        F = sum(spread[r, j] * torch.outer(inputs[r], inputs[r]) for r in range(R)) / R
        expected.append((1 + α) * torch.linalg.solve(F + α * torch.eye(n, dtype=torch.float64), slope[j]))
    torch.testing.assert_close(solve(slope, inputs, spread, α), torch.stack(expected), rtol=1e-11, atol=1e-11)  # type: ignore[operator]
    torch.testing.assert_close(solve(slope, inputs, spread, 1e9), slope, rtol=1e-8, atol=1e-8)  # type: ignore[operator]


@pytest.mark.parametrize("estimator", ["ws", "rws", "bihm"])
def test_a_step_uses_dreams_for_p_and_draws_of_q_for_q(estimator: str) -> None:
    model = machine(estimator, samples=3)
    x = (torch.rand(4, 3, dtype=torch.float64) < 0.5).double()
    torch.manual_seed(3)
    ios = model.capture(x)
    seen = model.capture_units(ios)
    S = 1 if estimator == "ws" else 3
    for io, (a, q) in zip(ios, seen, strict=True):
        torch.testing.assert_close(q, torch.sigmoid(io.layer(a)))
        assert len(a) == 4 * S
    assert torch.equal(seen[3][0], x.repeat_interleave(S, 0)), "q's first layer sees the data"
    assert torch.equal(seen[4][0], ios[0].a), "its next what was drawn of the first"
    torch.manual_seed(3)
    UnitNatural(model, damping=0.1)(x)
    io, (a, q) = ios[4], seen[4]
    slope = torch.cat([io.delta.T @ io.a, io.delta.sum(0)[:, None]], 1) / 4
    inputs = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
    found = by_inputs(slope, inputs, q * (1 - q), 0.1)
    torch.testing.assert_close(model.recognition[1].weight.grad, found[:, :-1])
    torch.testing.assert_close(model.recognition[1].bias.grad, found[:, -1])


def test_a_unit_of_two_layers_has_the_sum_over_its_uses() -> None:
    """Of the scores of all 512 states of a 3-3-3 net by autograd; and a step's by hand, of what it has drawn."""
    model, α, S, B = machine(hidden=(3, 3), samples=2), 0.1, 2, 4
    tied = model.generative[1] = model.generative[0]  # type: ignore[index]
    states = every_state(model)
    likely, parts = log_p(model, states).detach().exp(), [tied.weight, tied.bias]
    scores = []
    for one in log_p(model, states):
        W, b = torch.autograd.grad(one, parts, retain_graph=True)
        scores.append(torch.cat([W, b.unsqueeze(1)], 1)[1])  # of the second unit
    dense = torch.einsum("n,ni,nj->ij", likely, torch.stack(scores), torch.stack(scores))
    torch.testing.assert_close(summed(tied, states[1:], likely), dense, rtol=1e-12, atol=1e-12)

    x = (torch.rand(B, 3, dtype=torch.float64) < 0.5).double()
    torch.manual_seed(3)
    ios = model.capture(x)
    seen = [a for a, _ in model.capture_units(ios)[:2]]
    rows = [torch.cat([io.a, torch.ones_like(io.a[:, :1])], 1) for io in ios[:2]]
    slope = sum(io.delta.T @ a for io, a in zip(ios, rows, strict=False))[1] / B
    torch.manual_seed(3)
    UnitNatural(model, damping=α)(x)
    F = summed(tied, seen, torch.full((B * S,), 1 / (B * S), dtype=torch.float64))
    expected = (1 + α) * torch.linalg.solve(F + α * torch.eye(4, dtype=torch.float64), slope)
    torch.testing.assert_close(torch.cat([tied.weight.grad[1], tied.bias.grad[1:2]]), expected)


def summed(layer: torch.nn.Linear, uses: list[Tensor], likely: Tensor) -> Tensor:
    """Σ over uses of E[q (1 − q) ā āᵀ], of a layer's second unit."""
    found = torch.zeros(4, 4, dtype=torch.float64)
    for a in uses:
        q, rows = torch.sigmoid(layer(a)).detach()[:, 1], torch.cat([a, torch.ones_like(a[:, :1])], 1)
        found += (rows * (likely * q * (1 - q)).unsqueeze(1)).T @ rows
    return found


def test_fisher_of_p_is_of_dreams_and_that_of_q_of_its_draws() -> None:
    """Where p dreams ones and q draws zeros."""
    model = machine(samples=2)
    with torch.no_grad():
        model.prior.weight.fill_(30)
        for layer, sign in [(model.generative[1], 30), (model.recognition[0], -30), (model.recognition[1], -30)]:
            layer.weight.zero_()
            layer.bias.fill_(sign)
    seen = model.capture_units(model.capture(torch.zeros(4, 3, dtype=torch.float64)))
    assert [bool((a == 1).all()) for a, _ in seen[:3]] == [True] * 3
    assert [bool((a == 0).all()) for a, _ in seen[3:]] == [True] * 2


def test_natural_steps_learn_the_lines_sooner_at_one_rate() -> None:
    """Várady et al.'s claim, as it shows: divergence after 400 updates at 0.01; a larger step is most of it."""
    data, entropy, ends = lines(9, 3000, 0), 2.4283, {}
    assert isinstance(data.train, Tensor)
    for name, direction in (("estimated", EstimatedGradient), ("natural", UnitNatural)):
        torch.manual_seed(0)
        model = Helmholtz(9, 2, hidden=[6, 1])
        step = pair(model, direction, lambda parameters: torch.optim.SGD(parameters, lr=0.01))
        for _ in range(400):
            step(data.train[torch.randint(3000, (32,))])
        ends[name] = model.loss(data.held_out).item() - entropy
    assert 2 < ends["natural"] < ends["estimated"] - 0.2 < 3.7


@pytest.mark.parametrize(("form", "least", "most"), [("direct", 3.5, 4.05), ("woodbury", 1.8, 2.1)])
def test_systems_of_the_inputs_are_quartic_and_of_the_rows_quadratic(form: str, least: float, most: float) -> None:
    flops = []
    for dim in (128, 256):
        torch.manual_seed(0)
        model = Helmholtz(dim, 1, samples=2)
        with OperationLog() as counts:
            UnitNatural(model, form=form)((torch.rand(4, dim) < 0.5).float())
        assert not counts.uncounted
        flops.append(counts.flops)
    assert least < math.log2(flops[1] / flops[0]) < most


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="damping must be positive, got damping=0"):
        UnitNatural(Helmholtz(9), damping=0)
    with pytest.raises(ValueError, match="form must be one of auto, direct, woodbury, got 'dense'"):
        UnitNatural(Helmholtz(9), form="dense")
    with pytest.raises(TypeError, match="capture_units"):
        from stepscale.models import Classifier

        UnitNatural(Classifier(4))
    model = Helmholtz(9)
    with torch.no_grad():
        model.generative[0].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite: lower the rate"):
        UnitNatural(model)(torch.ones(2, 9))
