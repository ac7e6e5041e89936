"""Hessian-free against dense solves in float64: products, the damped step, the rule of λ, the preconditioned solver."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from stepscale.models import MLP, LayerIO
from stepscale.optimizers import HessianFree
from stepscale.optimizers.core.tangents import flat, gradients, mean_gradients, squares, unflat
from stepscale.optimizers.hessian.conjugate_gradients import conjugate_gradients, next_kept, slow
from stepscale.optimizers.hessian.hessian_free import line_search
from tests.conftest import batch_of, generic_flow
from tests.support.dense import NETWORKS, dense_fisher, network

pytestmark = pytest.mark.numerical

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def vector_of(model: Any) -> Tensor:
    return torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)


def fisher_by_products(model: Any, samples: list[LayerIO], v: Tensor) -> Tensor:
    return flat(mean_gradients(model.fisher_times(samples, unflat(v, list(model.layers)))))


@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_those_of_the_dense_fisher(name: str) -> None:
    model, batch = network(name)
    samples, v = model.capture_samples(model.capture(batch)), vector_of(model)
    torch.testing.assert_close(fisher_by_products(model, samples, v), dense_fisher(model, batch) @ v, **EXACT)


def test_products_of_a_flow_are_of_the_covariance_of_its_scores() -> None:
    model = generic_flow()
    x, v = batch_of(9), vector_of(model)
    values = {name: p.detach() for name, p in model.named_parameters()}
    rows = [
        jacrev(lambda p, row=row: functional_call(Losses(model), p, (row,)))(prefixed(values)) for row in x.split(1)
    ]
    scores = torch.stack([torch.cat([row[f"model.{name}"].flatten() for name in values]) for row in rows])
    scores = scores - scores.mean(0)
    torch.testing.assert_close(
        fisher_by_products(model, model.capture(x), v), scores.T @ (scores @ v) / len(x), **EXACT
    )


class Losses(torch.nn.Module):
    """A model whose forward pass is its loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.model.loss(x)
        return loss


def prefixed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in values.items()}


def linear() -> tuple[MLP, tuple[Tensor, Tensor]]:
    """A linear regression: its loss is quadratic, and the Fisher matrix its Hessian."""
    model = MLP([4, 3], activation="tanh", output="gaussian").double()
    return model, (batch_of(20, 4), batch_of(20, 3))


def dense_step(model: MLP, batch: Any, damping: float) -> Tensor:
    model.zero_grad()
    model.loss(batch).backward()
    F, g = dense_fisher(model, batch), flat(gradients(list(model.layers)))
    return torch.linalg.solve(F + damping * torch.eye(len(F), dtype=F.dtype), -g)


def test_a_step_without_damping_is_newtons() -> None:
    model, batch = linear()
    expected = parameters_of(model) + dense_step(model, batch, 0.0)
    HessianFree(model, damping=1e-12, floor=1e-13, tolerance=0)(batch)
    torch.testing.assert_close(parameters_of(model), expected, rtol=1e-8, atol=1e-8)


def parameters_of(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_solution_is_the_damped_one(name: str) -> None:
    model, batch = network(name)
    expected = dense_step(model, batch, 0.3)
    step = HessianFree(model, damping=0.3, iterations=300, tolerance=0)
    kept = step.solve(model.capture(batch), -flat(gradients(list(model.layers))))
    torch.testing.assert_close(kept[-1].x, expected, rtol=1e-8, atol=1e-8)
    g = flat(gradients(list(model.layers)))
    assert kept[-1].q == pytest.approx((0.5 * g @ expected).item(), rel=1e-9)  # M at its minimum
    assert all(later.q <= earlier.q + 1e-12 for earlier, later in itertools.pairwise(kept))


def test_squares_are_of_each_samples_gradient() -> None:
    model, batch = network("tanh")
    rows = [flat(mean_gradients(model.capture(row))) for row in batch.split(1)]
    torch.testing.assert_close(flat(squares(model.capture(batch))), torch.stack(rows).square().mean(0), **EXACT)


def test_a_preconditioner_of_the_whole_diagonal_solves_at_once() -> None:
    """Of a diagonal A, M = A makes every eigenvalue 1; with the plain residual r·r in the first length it would not."""
    A, b = torch.logspace(-3, 3, 12, dtype=torch.float64), vector(12)
    kept, done = conjugate_gradients(lambda v: A * v, b, start=vector(12), scale=A, iterations=50)
    torch.testing.assert_close(kept[0].x, b / A, rtol=1e-10, atol=1e-10)
    assert done <= 3


def vector(n: int) -> Tensor:
    return torch.randn(n, dtype=torch.float64)


def test_which_iterates_are_kept() -> None:
    found, i = [1], 1
    while i < 50:
        i = next_kept(i)
        found.append(i)
    assert found == sorted({math.ceil(1.3**j) for j in range(16)})


def test_progress_is_judged_over_a_window() -> None:
    values = [0.0, *[-1.0] * 10]
    assert not slow(values, 1e-3)  # the first of the window is the start
    assert slow([*values, -1.0], 1e-3) and not slow([*values, -1.0], 0.0)
    assert not slow([*values, -2.0], 1e-3)


@pytest.mark.parametrize(
    ("change", "foretold", "after"), [(-0.9, -1, 2.0), (-0.5, -1, 3.0), (-0.1, -1, 4.5), (0.1, -1, 4.5), (1, 0, 4.5)]
)
def test_damping_follows_how_well_the_loss_is_foretold(change: float, foretold: float, after: float) -> None:
    step = HessianFree(linear()[0], damping=3.0)
    step._adapt(change, foretold)
    assert step.damping == pytest.approx(after)


def test_damping_stays_at_its_floor() -> None:
    step = HessianFree(linear()[0], damping=0.5, floor=0.4)
    step._adapt(-1, -1)
    assert step.damping == 0.4


def test_a_step_is_shortened_until_the_loss_falls_enough() -> None:
    tried: list[float] = []

    def loss(rate: float) -> float:  # falls along rates below 0.5, by its slope of -1 at 0
        tried.append(rate)
        return rate * (rate / 0.5 - 1)

    assert line_search(loss, 0.0, loss(1.0), -1.0) == pytest.approx(0.8**4)  # 0.41, the first below 0.495
    assert len(tried) == 5
    assert line_search(lambda rate: rate, 0.0, 1.0, -1.0) == 0.0
    assert line_search(lambda rate: -rate, 0.0, -1.0, 1.0) == 0.0  # no descent


def test_no_step_raises_the_loss_of_its_batch() -> None:
    model, batch = network("bernoulli", rows=30)
    step, losses = HessianFree(model, damping=1e-3, floor=1e-6), [model.loss(batch).item()]
    for _ in range(8):
        step(batch)
        losses.append(model.loss(batch).item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_batch_that_is_not_finite_moves_nothing_and_is_named() -> None:
    model, batch = network("tanh")
    step, broken = HessianFree(model), batch.clone()
    broken[0, 0] = math.nan
    before = parameters_of(model)
    with pytest.raises(
        FloatingPointError, match="not finite before a step: its batch is not, or the model has diverged"
    ):
        step(broken)
    assert torch.equal(parameters_of(model), before)
    step(batch)
    assert torch.isfinite(parameters_of(model)).all()


def test_a_flow_is_trained() -> None:
    model, x = generic_flow(), batch_of(200)
    before = model.loss(x).item()
    step = HessianFree(model)
    for _ in range(3):
        step(x)
    assert model.loss(x).item() < before


def test_a_state_taken_up_goes_on_the_same() -> None:
    one, batch = network("tanh")
    step = HessianFree(one)
    step(batch)
    other, _ = network("tanh")
    other.load_state_dict(one.state_dict())
    again = HessianFree(other)
    again.load_state_dict(step.state_dict())
    step(batch)
    again(batch)
    torch.testing.assert_close(parameters_of(one), parameters_of(other), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.01}, "damping must be at least floor, and floor positive, got 0.01 and 0.1"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"warm": 2.0}, "warm in 0 … 1, got 0.0005 and 2.0"),
    ],
)
def test_what_does_not_fit_is_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HessianFree(linear()[0], **options)
