"""KLD-WRM against the minimum of its defining sum, its closed form, and dense Kronecker products, in float64."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.models import MLP, Batch, Classifier, Flow, LayerIO
from stepscale.optimizers import (
    KFAC,
    KLDWRM,
    KLClipped,
    Paired,
    QuadraticStep,
    Schedule,
    SelfNormalizing,
    TrustRegion,
    pair,
    split,
)
from tests.conftest import batch_of, generic_flow, gradients
from tests.support.dense import homogeneous, in_parameters, layers_of, mean_gradients, move, network

pytestmark = pytest.mark.numerical

LR, FACTORS = 0.02, [1.0, 0.5, 1.5, 0.3, 0.3, 0.9, 2.0]  # the learning rate at first, and times what step by step
SGD = partial(torch.optim.SGD, lr=LR)
RATES = [LR * factor for factor in FACTORS]
Pair = tuple[Tensor, Tensor]


def paced(model: nn.Module, make: Callable[..., KFAC]) -> Paired:
    return pair(model, make, SGD, scheduler=partial(LambdaLR, lr_lambda=lambda k: FACTORS[k % len(FACTORS)]))


def linear_regression() -> MLP:
    """One layer of a Gaussian of variance 1, whose draws have second moment I: its Fisher matrix is A ⊗ I exactly."""
    model = MLP([3, 2], activation="tanh", output="gaussian").double()

    def draws(ios: list[LayerIO]) -> list[LayerIO]:
        noise = torch.linalg.qr(torch.randn(len(ios[0].a), 2, dtype=torch.float64)).Q * len(ios[0].a) ** 0.5
        return model._captured([(io.a, io.u, io.y) for io in ios], noise)

    model.capture_samples = draws  # type: ignore[method-assign]
    return model


def theta(model: MLP) -> Tensor:
    layer = model.layers[0]
    return torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1).detach().clone()


def newton(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a quadratic function."""
    at = start.flatten().requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda t: objective(t.view_as(start)), at)
    curvature = torch.autograd.functional.hessian(lambda t: objective(t.view_as(start)), at)
    return start - torch.linalg.solve(curvature, slope).view_as(start)


def divergence(i: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """KL(p(θ_i) ‖ p(θ)) of two Gaussians of variance 1, mean over the inputs of step i."""
    return 0.5 * (homogeneous(x) @ (i - t).T).square().sum(1).mean()


def wake(
    quadratic: bool,
    here: Tensor,
    x: Tensor,
    y: Tensor,
    passed: list[tuple[float, Tensor, Tensor]],
    rate: float,
    t: Tensor,
) -> Tensor:
    """The defining sum: the loss, which is a quadratic function, or its slope, and divergences from what has passed."""

    def loss(t: Tensor) -> Tensor:
        return 0.5 * (y - homogeneous(x) @ t.T).square().sum(1).mean()

    slope = torch.autograd.functional.jacobian(loss, here)
    return (loss(t) if quadratic else (slope * t).sum()) + sum(w * divergence(i, t, u) for w, i, u in passed) / rate


@pytest.mark.parametrize("rho", [0.4, 0.8])  # of the second the first weights are those of a plain mean
@pytest.mark.parametrize("order", ["so", "q"])
def test_every_step_is_at_the_minimum_of_its_wake(order: str, rho: float) -> None:
    model = linear_regression()
    step = paced(model, partial(KLDWRM, order=order, damping=0.0, frame="euclidean", schedule=Schedule(1, 1, rho)))
    passed: list[tuple[float, Tensor, Tensor]] = []
    for k, rate in enumerate(RATES):
        x, y = batch_of(20, 3), batch_of(20, 2)
        here, keep = theta(model), min(1 - 1 / (k + 1), rho)
        passed = [(keep * w, t, rows) for w, t, rows in passed] + [(1 - keep, here, x)]

        least = newton(partial(wake, order == "q", here, x, y, passed, rate), here.clone())
        step((x, y))
        torch.testing.assert_close(theta(model), least, rtol=1e-10, atol=1e-10)


def test_with_one_fisher_matrix_it_is_k_fac_at_a_share_of_the_rate_that_looks_ahead() -> None:
    """θ_k = θ_0 − F⁻¹ [(1 − ρ) Σ η_i g_i + ρ η_k g_k], whatever the rates."""
    model, rho, x = linear_regression(), 0.4, batch_of(20, 3)
    step = paced(model, partial(KLDWRM, damping=0.0, frame="euclidean", schedule=Schedule(1, 1, rho)))
    start, A = theta(model), homogeneous(x).T @ homogeneous(x) / 20
    total = torch.zeros_like(start)
    for rate in RATES:
        y = batch_of(20, 2)
        g = (homogeneous(x) @ theta(model).T - y).T @ homogeneous(x) / 20
        total += (1 - rho) * rate * g
        step((x, y))
        expected = start - (total + rho * rate * g) @ torch.linalg.inv(A)
        torch.testing.assert_close(theta(model), expected, rtol=1e-10, atol=1e-10)


def sides(model: Any, drawn: list[LayerIO]) -> list[Pair]:
    """A and G of each layer, of a captured batch."""
    found = []
    for io in drawn:
        x = io.y if isinstance(model, Flow) else io.a
        x = x if io.layer.bias is None else homogeneous(x)
        found.append((x.T @ x / len(x), io.delta.T @ io.delta / len(x)))
    return found


def solved(A: Tensor, G: Tensor, S: Tensor, damping: float) -> Tensor:
    """S by the damped dense Kronecker product, split over the factors as K-FAC's section 6.3 does."""
    pi, root = math.sqrt(A.trace() / len(A) / (G.trace() / len(G))), math.sqrt(damping)
    one = torch.eye(len(G), dtype=G.dtype), torch.eye(len(A), dtype=A.dtype)
    dense = torch.kron(G + root / pi * one[0], A + root * pi * one[1])
    return torch.linalg.solve(dense, S.flatten()).view_as(S)


def dense_run(
    model: Any, batches: list[Batch], order: str, rho: float, every: int, drawn_from: str, seen: int = 1
) -> None:
    """Train by dense matrices: ρ of the last gradient, and of F s, taken from today's; inverses every few steps.

    Averages are of every ``seen``-th batch.
    """
    averages: list[Pair] = []
    kept: list[Pair] = []
    last: list[Tensor] = []
    for k, batch in enumerate(batches):
        rate, before = RATES[k], RATES[k - 1] if k else 1.0
        torch.manual_seed(k)
        found, ios = list(mean_gradients(model, batch, isinstance(model, Flow))), model.capture(batch)
        fresh = sides(model, ios if drawn_from == "data" else model.capture_samples(ios))
        keep = min(1 - 1 / (k // seen + 1), rho)
        if k % seen == 0:
            averages = [
                (keep * A + (1 - keep) * A_now, keep * G + (1 - keep) * G_now)
                for (A, G), (A_now, G_now) in zip(averages or fresh, fresh, strict=True)
            ]
        if k % every == 0:
            kept = [
                (A + rate * A_now, (G + rate * G_now) / (1 + rate)) if order == "q" else (A, G)
                for (A, G), (A_now, G_now) in zip(averages, fresh, strict=True)
            ]
        hats = [S - keep * before / rate * L for S, L in zip(found, last or found, strict=True)]
        moves = [solved(A, G, S, 0.3) for (A, G), S in zip(kept, hats, strict=True)]
        last = found
        if order == "q":
            last = [S - rate * G @ D @ A for S, D, (A, G) in zip(found, moves, fresh, strict=True)]
        for layer, D in zip(layers_of(model), moves, strict=True):
            move(layer, in_parameters(layer, D, isinstance(model, Flow)), rate)


MODELS: dict[str, Callable[[int], tuple[Any, Batch]]] = {
    "flow": lambda rows: (generic_flow(), batch_of(rows) / 3),
    "flow without bias": lambda rows: (Flow(5, 2, bias=False).double(), batch_of(rows) / 3),
    **{name: partial(network, name) for name in ("tanh", "classifier", "no bias")},
}


@pytest.mark.parametrize("rows", [2, 30])  # preconditioned before and after the product over the rows
@pytest.mark.parametrize("drawn_from", ["data", "model"])
@pytest.mark.parametrize("order", ["so", "q"])
@pytest.mark.parametrize("which", MODELS)
def test_it_trains_as_by_dense_matrices(which: str, order: str, drawn_from: str, rows: int) -> None:
    batches = [MODELS[which](rows + k % 2)[1] for k in range(len(RATES))]
    (model, _), (other, _) = MODELS[which](rows), MODELS[which](rows)
    other.load_state_dict(model.state_dict())
    frame = "relative" if isinstance(model, Flow) else "euclidean"
    make = partial(KLDWRM, order=order, damping=0.3, frame=frame, statistics=drawn_from, schedule=Schedule(1, 3, 0.6))
    step = paced(model, make)
    for k, batch in enumerate(batches):
        torch.manual_seed(k)
        step(batch)
    dense_run(other, batches, order, 0.6, 3, drawn_from)
    for (name, one), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10, msg=lambda said, name=name: f"{name}: {said}")


def test_where_averages_are_of_some_batches_the_share_is_theirs() -> None:
    """It is 0 until they are of two."""
    (model, _), (other, _), batches = network("tanh"), network("tanh"), [network("tanh")[1] for _ in RATES]
    other.load_state_dict(model.state_dict())
    options = {"damping": 0.3, "frame": "euclidean", "statistics": "data", "schedule": Schedule(2, 2, 0.6)}
    step = paced(model, partial(KLDWRM, **options))  # type: ignore[arg-type]
    for batch in batches:
        step(batch)
    dense_run(other, batches, "so", 0.6, 2, "data", seen=2)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10)


class Tokens(nn.Module):
    """Two linear layers over the tokens of a sample; the loss is a mean over samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 2)])
        self.double()

    def loss(self, batch: Tensor) -> Tensor:
        return 0.5 * (self.layers[1](torch.tanh(self.layers[0](batch))) - 1).square().sum((1, 2)).mean()


@pytest.mark.parametrize("shared", ["expand", "reduce"])
@pytest.mark.parametrize("order", ["so", "q"])
def test_tokens_and_batches_of_other_sizes_count_as_their_gradients_do(order: str, shared: str) -> None:
    """Autograd's gradients between the inverses that the direction has, of layers that see several rows a sample."""
    model, rho = Tokens(), 0.4
    options = {"frame": "euclidean", "statistics": "data", "shared": shared, "schedule": Schedule(1, 1, rho)}
    direction, alone = KLDWRM(model, order=order, damping=0.3, **options), KFAC(model, **options)
    last: list[Tensor] = []
    for rate, before, batch in ((0.5, 1.0, torch.randn(3, 4, 4)), (0.2, 0.5, torch.randn(5, 4, 4))):
        batch, direction.rate = batch.double(), rate
        found = list(mean_gradients(model, batch, isinstance(model, Flow)))
        alone.moments = []
        alone(batch)
        gradients(model)
        direction(batch)
        hats = [S - rho * before / rate * L for S, L in zip(found, last, strict=True)] if last else found
        last = []
        for layer, S, hat, applied, moments in zip(
            model.layers, found, hats, direction.applied, alone.moments, strict=True
        ):
            D = applied.left @ hat @ applied.right  # type: ignore[operator]
            torch.testing.assert_close(layer.weight.grad, D[:, :-1], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(layer.bias.grad, D[:, -1], rtol=1e-10, atol=1e-12)
            A, G = moments.both
            last.append(S - rate * G @ D @ A if order == "q" else S)
        gradients(model)


@pytest.mark.parametrize("order", ["so", "q"])
def test_without_memory_it_is_k_fac_of_each_batch(order: str) -> None:
    """Of Q at η / (1 + η)."""
    model, batch = linear_regression(), (batch_of(20, 3), batch_of(20, 2))
    options = {"damping": 0.0 if order == "q" else 0.3, "frame": "euclidean", "schedule": Schedule(1, 1, 0.0)}
    direction, plain = KLDWRM(model, order=order, **options), KFAC(model, **options)
    direction.rate = 0.25
    for k in range(3):
        torch.manual_seed(k)
        direction(batch)
        found = gradients(model)
        torch.manual_seed(k)
        plain(batch)
        for one, same in zip(found, gradients(model), strict=True):
            if order == "so":
                assert torch.equal(one, same)
            torch.testing.assert_close(one, same / (1.25 if order == "q" else 1), rtol=1e-12, atol=1e-12)


def test_stale_log_determinants_have_the_same_share() -> None:
    """Where the inverses are of every step, stale ones are none."""
    found = []
    for log_det in ("exact", "stale"):
        torch.manual_seed(0)
        model = generic_flow()
        step = paced(model, partial(KLDWRM, statistics="data", log_det=log_det, schedule=Schedule(1, 1, 0.6)))
        for _ in range(4):
            step(batch_of(9) / 3)
        found.append([p.detach().clone() for p in model.parameters()])
    for one, same in zip(*found, strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", ["so", "q"])
def test_a_schedule_may_begin_and_end_at_a_rate_of_zero(order: str) -> None:
    model, batch = network("tanh")
    rates = partial(LambdaLR, lr_lambda=lambda k: [0.0, 1.0, 0.5, 0.0, 1.0, 1.0][k])
    step = pair(model, partial(KLDWRM, order=order, frame="euclidean", statistics="data"), SGD, scheduler=rates)
    for k in range(5):
        before = [p.detach().clone() for p in model.parameters()]
        step(batch)
        assert all(p.isfinite().all() for p in model.parameters())
        assert all(map(torch.equal, before, model.parameters())) is (k in (0, 3))


def test_groups_of_other_rates_are_refused() -> None:
    model = generic_flow()
    step = pair(model, KLDWRM, partial(split, matrices=SGD, rest=partial(torch.optim.SGD, lr=0.5)))
    with pytest.raises(ValueError, match=r"KLDWRM goes by one learning rate, and groups.* have 0\.02, 0\.5: give them"):
        step(batch_of())
    pair(model, KLDWRM, partial(split, matrices=SGD, rest=SGD))(batch_of())


def test_another_direction_s_rate_is_its_own() -> None:
    step = pair(generic_flow(), partial(SelfNormalizing, rate=0.5), SGD)
    step(batch_of())
    assert step.direction.rate == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", ["so", "q"])
def test_between_inversions_no_product_is_cubic(order: str) -> None:
    flops = []
    for dim in (128, 256):
        direction = KLDWRM(
            Classifier(dim, 3, classes=10), order=order, frame="euclidean", schedule=Schedule(1, 20, 0.3)
        )
        batch = torch.randn(16, dim), torch.randint(0, 10, (16,))
        direction(batch)
        with OperationLog() as log:
            direction(batch)
        flops.append(log.flops)
    assert math.log2(flops[1] / flops[0]) < 2.05


@pytest.mark.parametrize("order", ["so", "q"])
def test_state_goes_on_where_it_was(order: str) -> None:
    batches = [batch_of(3) / 3 for _ in range(7)]
    model, other = generic_flow(), generic_flow()
    make = partial(KLDWRM, order=order, statistics="data", schedule=Schedule(1, 3, 0.6))
    step, again = paced(model, make), paced(other, make)
    for batch in batches[:4]:
        step(batch)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(step.state_dict())
    for batch in batches[4:]:
        step(batch)
        again(batch)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


def test_a_batch_that_is_written_over_is_not_the_last_gradient() -> None:
    found = []
    for reused in (True, False):
        torch.manual_seed(0)
        model, _ = network("tanh")
        step, place = paced(model, partial(KLDWRM, frame="euclidean", statistics="data")), batch_of()
        for _ in range(3):
            fresh = batch_of()
            step(place.copy_(fresh) if reused else fresh)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *found))


def test_what_makes_no_sense_is_refused() -> None:
    model = generic_flow()
    with pytest.raises(ValueError, match=r"frame=euclidean would keep W⁻ᵀ.*set frame=relative"):
        KLDWRM(model, frame="euclidean")(batch_of())
    with pytest.raises(ValueError, match=r"order must be one of so, q, got 'qe'"):
        KLDWRM(model, order="qe")
    with pytest.raises(ValueError, match=r"every batch, got schedule\.statistics=10: set it to 1"):
        KLDWRM(model, order="q", schedule=Schedule(10, 10))
    for option in ({"momentum": 0.9}, {"form": "dense"}):
        with pytest.raises(ValueError, match=r"the last gradient in place of momentum.*leave both out"):
            KLDWRM(model, **option)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"KLDWRM goes by learning rates, of which.*has none: give it to pair"):
        QuadraticStep(model, KLDWRM)
    with pytest.raises(TypeError, match=r"KLDWRM goes by the last step, which would be another.*give it to pair"):
        KLClipped(model, KLDWRM, SGD)
    with pytest.raises(TypeError, match="KLDWRM owns no momentum"):
        TrustRegion(model, KLDWRM, SGD)
