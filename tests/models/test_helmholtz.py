"""Helmholtz machines against sums over every state in float64, and against autograd where it applies."""

import math

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.data import digits, lines
from stepscale.models import Helmholtz, LayerIO
from stepscale.optimizers import EstimatedGradient, Layerwise, Relative
from tests.support.helmholtz import every_state, log_p, log_q, machine

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("hidden", [(2, 1), (1,), (3, 2, 2)])
def test_likelihood_is_the_sum_over_every_hidden_state(hidden: tuple[int, ...]) -> None:
    model = machine(hidden=hidden)
    states = every_state(model)
    joint = log_p(model, states).exp().view(2**3, -1).sum(1)
    assert joint.sum().item() == pytest.approx(1, abs=1e-12)
    x = states[0].view(2**3, -1, 3)[:, 0]
    torch.testing.assert_close(torch.stack([-model.loss(row[None]) for row in x]), joint.log(), rtol=1e-12, atol=1e-12)


def test_bound_is_above_the_loss_comes_near_it_and_is_the_same_at_every_look() -> None:
    model, x = machine(looks=2_000), torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    exact = model.loss(x).item()
    assert model.objective.exact
    model.enumerable = False
    assert model.loss(x).item() == model.loss(x).item() == pytest.approx(exact, abs=0.05)
    model.looks = 1
    assert model.loss(x.repeat(500, 1)).item() > exact + 0.1, (
        "the mean of a logarithm is below the logarithm of the mean"
    )
    assert "bound" in Helmholtz(64).objective.name and not Helmholtz(64).objective.exact


def drawn_by(ios: list[LayerIO], model: Helmholtz, S: int) -> tuple[list[Tensor], list[Tensor] | None]:
    """States that q drew, and those that p dreamt, from what the layers saw."""
    of_p, of_q = ios[: len(model.generative)], ios[len(model.generative) + 1 :]
    x = of_q[0].a.view(-1, of_q[0].copies, 3)
    awake = [x[:, :S].flatten(0, 1), *(io.a for io in of_p)]
    if of_q[0].copies == S:
        return awake, None
    asleep = [io.a.view(-1, io.copies, io.a.shape[1])[:, S:].flatten(0, 1) for io in of_q]
    last = of_q[-1]
    child = (torch.sigmoid(last.y) - last.delta / (1.0 if model.estimator == "ws" else 0.5 / S)).round()
    return awake, [*asleep, child.view(-1, last.copies, child.shape[1])[:, S:].flatten(0, 1)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("estimator", ["ws", "rws", "bihm"])
def test_what_is_written_is_the_estimators_gradient(estimator: str, tied: bool) -> None:
    """Of the surrogate whose gradient it is by definition, for the states that were drawn, by autograd."""
    model, S = machine(estimator, hidden=(3, 3 if tied else 2), samples=4), 1 if estimator == "ws" else 4
    if tied:
        model.generative[1] = model.generative[0]  # type: ignore[index]
        model.recognition[1].weight = model.recognition[0].weight
    x = (torch.rand(5, 3, dtype=torch.float64) < 0.5).double()
    torch.manual_seed(7)
    awake, asleep = drawn_by(model.capture(x), model, S)
    torch.manual_seed(7)
    EstimatedGradient(model)(x)
    written = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    p, q = log_p(model, awake), log_q(model, awake)
    ratio = (p - q).detach() / (2 if estimator == "bihm" else 1)
    weights = torch.softmax(ratio.view(5, S), 1).flatten()
    surrogate = -(weights * p).sum() / 5
    if estimator == "bihm":
        surrogate = surrogate - ((weights - 1 / S) * q).sum() / 5
    if asleep is not None:
        share = 0.5 if estimator == "rws" else 1.0
        surrogate = surrogate - share * log_q(model, asleep).mean()
        surrogate = surrogate - (1 - share) * ((weights - 1 / S) * q).sum() / 5
    expected = torch.autograd.grad(surrogate, list(model.parameters()))
    torch.testing.assert_close(written, list(expected), rtol=1e-10, atol=1e-12)


def test_reweighted_gradient_of_many_draws_is_that_of_the_likelihood() -> None:
    model, x = machine("rws", samples=100_000), torch.tensor([[1.0, 0, 1]], dtype=torch.float64)
    EstimatedGradient(model)(x)
    of_p = [*model.generative.parameters(), *model.prior.parameters()]  # type: ignore[attr-defined]
    exact = torch.cat([slope.flatten() for slope in torch.autograd.grad(model.loss(x), of_p)])
    found = torch.cat([parameter.grad.flatten() for parameter in of_p if parameter.grad is not None])
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_dreams_are_of_the_models_distribution() -> None:
    model = machine()
    joint = log_p(model, every_state(model)).exp().view(2**3, -1).sum(1)
    torch.manual_seed(1)
    codes = (model.sample(40_000) @ torch.tensor([4.0, 2, 1], dtype=torch.float64)).long()
    found = torch.bincount(codes, minlength=8) / 40_000
    assert ((found - joint).abs() < 5 * (joint / 40_000).sqrt()).all()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"depth=2 needs that many hidden widths of at least 1, got \[6\]"):
        Helmholtz(9, 2, hidden=[6])
    with pytest.raises(ValueError, match="depth must be at least 1, got depth=0"):
        Helmholtz(4, 0)
    with pytest.raises(ValueError, match="samples=0"):
        Helmholtz(9, samples=0)
    with pytest.raises(ValueError, match="estimator must be one of ws, rws, bihm, got 'vae'"):
        Helmholtz(9, estimator="vae")
    with pytest.raises(ValueError, match="zeros and ones: use data=lines or binary_digits"):
        Helmholtz(9).loss(torch.rand(2, 9))
    with pytest.raises(TypeError, match="Helmholtz has an estimate of its own: use latent/estimated"):
        Layerwise(Helmholtz(9))
    with pytest.raises(TypeError, match=r"log\|det W\|"):
        Relative(Helmholtz(4, 1))(torch.ones(2, 4))
    with pytest.raises(TypeError, match="leaves out log-determinants"):
        from stepscale.models import Flow

        EstimatedGradient(Flow(4))(torch.randn(2, 4))


def test_lines_are_twelve_patterns_and_their_exact_shares() -> None:
    data = lines(9, 3000, 0)
    assert isinstance(data.train, Tensor) and isinstance(data.held_out, Tensor)
    patterns, shares = data.held_out.unique(dim=0, return_counts=True)
    likely = shares / len(data.held_out)
    assert len(patterns) == 12 and sorted(shares.tolist()) == [1] * 6 + [2] * 6
    assert -(likely * likely.log()).sum().item() == pytest.approx(2.4283, abs=5e-5)
    images = patterns.view(-1, 3, 3)
    columns_alike, rows_alike = (images == images[:, :1]).all(2).all(1), (images == images[:, :, :1]).all(2).all(1)
    assert torch.equal(shares, 1 + columns_alike.long()) and (columns_alike ^ rows_alike).all()
    _, drawn = data.train.unique(dim=0, return_counts=True)
    assert torch.allclose(drawn / 3000, likely, atol=5 * math.sqrt(1 / 9 / 3000))
    with pytest.raises(ValueError, match="got dim=8; set dim=9"):
        lines(8, 10, 0)


def test_binary_digits_are_the_digits_above_a_half() -> None:
    grey, black = digits(64, None, 0).held_out, digits(64, None, 0, binary=True).held_out
    assert isinstance(grey, Tensor) and isinstance(black, Tensor)
    assert torch.equal(black, (grey > 0.5).float()) and 0.2 < black.mean() < 0.6


def test_frozen_parts_stay() -> None:
    model = machine()
    layer: nn.Linear = model.recognition[0]
    layer.weight.requires_grad_(False)
    EstimatedGradient(model)(torch.ones(2, 3, dtype=torch.float64))
    assert layer.weight.grad is None and layer.bias.grad is not None
