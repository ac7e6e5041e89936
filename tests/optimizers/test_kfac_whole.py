"""What K-FAC's paper has beside its direction, by dense matrices: γ, a penalty, shares of rows, averaged iterates."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.bench.training.evaluation import judged
from stepscale.models import MLP, Batch, LayerIO, Transformer, first
from stepscale.optimizers import EKFAC, KFAC, TNT, Kronecker, QuadraticStep, Schedule
from tests.conftest import batch_of, generic_flow, gradients
from tests.support.dense import dense_fisher, network

pytestmark = pytest.mark.numerical

DAMPING, EVERY = 0.5, 2
DIRECTION = partial(KFAC, damping=DAMPING, frame="euclidean", statistics="data", schedule=Schedule(1, EVERY))


def parameters(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient(model: Any, batch: Batch, l2: float = 0.0) -> Tensor:
    """∇ of the loss and of l2/2 ‖θ‖²; the model's own ``.grad`` stays."""
    found = torch.autograd.grad(model.loss(batch), list(model.parameters()))
    return torch.cat([g.flatten() for g in found]) + l2 * parameters(model)


def of_layers(model: Any, flat: Tensor) -> list[Tensor]:
    """A vector of all parameters as a matrix ``[out, in + 1]`` for each layer."""
    parts = iter(flat.split([p.numel() for p in model.parameters()]))
    return [torch.cat([next(parts).view_as(layer.weight), next(parts).unsqueeze(1)], dim=1) for layer in model.layers]


def flat(matrices: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for M in matrices for part in (M[:, :-1], M[:, -1])])


def solved(A: Tensor, G: Tensor, S: Tensor, damping: float) -> Tensor:
    """S by the dense Kronecker product with the damping split over its factors (section 6.3)."""
    pi, root = math.sqrt(A.trace() / len(A) / (G.trace() / len(G))), math.sqrt(damping)
    one = torch.eye(len(G), dtype=G.dtype), torch.eye(len(A), dtype=A.dtype)
    return torch.linalg.solve(torch.kron(G + root / pi * one[0], A + root * pi * one[1]), S.flatten()).view_as(S)


def lowest(F: Tensor, slope: Tensor, directions: list[Tensor]) -> tuple[float, Tensor]:
    """The least ½ δᵀFδ + slopeᵀδ in the span of the directions, and where it is."""
    V = torch.stack(directions, dim=1)
    delta = -V @ torch.linalg.solve(V.T @ F @ V, V.T @ slope)
    return (0.5 * delta @ F @ delta + slope @ delta).item(), delta


def factors(direction: Kronecker[Any]) -> list[tuple[Tensor, Tensor]]:
    return [tuple(M.clone() for M in moments.both) for moments in direction.moments]  # type: ignore[misc]


@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("name", ["tanh", "bernoulli", "classifier"])
def test_gamma_is_the_one_of_three_with_the_lowest_quadratic_model(name: str, l2: float) -> None:
    """By dense matrices, over a training: λ of M and η stay, the inverses of each γ are of the same factors."""
    model, batch = network(name, 20)
    step = QuadraticStep(model, DIRECTION, interval=None, gamma_interval=EVERY, l2=l2)
    assert step.direction.damping == DAMPING + l2
    split, factor, last, kept, chosen = DAMPING + l2, 0.95**EVERY, None, [], []
    for k in range(8):
        before, slope = parameters(model), gradient(model, batch, l2)
        F = dense_fisher(model, batch) + (DAMPING + l2) * torch.eye(len(before), dtype=before.dtype)
        step(batch)
        if k % EVERY == 0:
            kept = factors(step.direction)
        searched = k and k % EVERY == 0
        tried = []
        for damping in (split, split * factor, split / factor) if searched else (split,):
            parts = zip(kept, of_layers(model, slope), strict=True)
            D = flat([solved(A, G, S, damping) for (A, G), S in parts])
            tried.append((*lowest(F, slope, [D] if last is None else [D, last]), damping, D))
        value, delta, split, D = min(tried, key=lambda trial: trial[0])
        chosen += [tried.index(next(t for t in tried if t[0] == value))] if searched else []
        assert step.direction.damping == pytest.approx(split, rel=1e-12)
        torch.testing.assert_close(parameters(model) - before, delta, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), D, rtol=1e-8, atol=1e-10)
        last = parameters(model) - before
    assert set(chosen) - {0}, "γ has moved"
    assert step.damping == DAMPING


def test_without_a_search_gamma_follows_lambda_and_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network("tanh", 20)
    step = QuadraticStep(model, DIRECTION, interval=1, l2=0.25)
    losses = iter([1.0, 2.0])  # before and after: it rose
    monkeypatch.setattr(model, "loss", lambda batch: torch.tensor(next(losses)))
    assert step.direction.damping == DAMPING + 0.25
    step(batch)
    assert step.damping == pytest.approx(DAMPING / 0.95)
    assert step.direction.damping == step.damping + 0.25


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_the_penalty_s_gradient_is_preconditioned_on_a_flow(frame: str) -> None:
    """By autograd of loss and penalty, in the relative frame along (I + E) W, (I + E) b + e."""
    model, x, l2 = generic_flow(), batch_of(20), 0.25
    make = partial(KFAC, damping=DAMPING, frame=frame, statistics="data", schedule=Schedule(1, 1))
    step = QuadraticStep(model, make, l2=l2)
    before, slope = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in model.layers], []
    for (W, b), C in zip(before, of_layers(model, gradient(model, x, l2)), strict=True):
        E = torch.zeros(5, 6, dtype=x.dtype, requires_grad=True)
        one = torch.eye(5, dtype=x.dtype)
        relative = (one + E[:, :5]) @ W, (one + E[:, :5]) @ b + E[:, 5]
        moved = relative if frame == "relative" else (W + E[:, :5], b + E[:, 5])
        slope += torch.autograd.grad(moved, E, grad_outputs=(C[:, :5], C[:, 5]))
    step(x)
    for layer, (W, b), S, (A, G) in zip(model.layers, before, slope, factors(step.direction), strict=True):
        D = solved(A, G, S, DAMPING + l2)
        if frame == "relative":
            D = torch.cat([D[:, :5] @ W, (D[:, :5] @ b + D[:, 5]).unsqueeze(1)], dim=1)
        torch.testing.assert_close(layer.weight.grad, D[:, :5], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer.bias.grad, D[:, 5], rtol=1e-10, atol=1e-10)


def test_the_penalty_counts_in_what_lambda_goes_by() -> None:
    """Data are met exactly, so that a step lowers the penalty alone, as foretold, and raises the rest of the loss."""
    model = MLP([3, 2], activation="tanh", output="gaussian").double()
    x = batch_of(50, 3)
    make = partial(KFAC, damping=1e-3, frame="euclidean", statistics="data", schedule=Schedule(1, 1))
    step = QuadraticStep(model, make, interval=1, l2=1.0)
    targets = model(x).detach()
    loss = model.loss((x, targets)).item()
    step((x, targets + 1e-9 * batch_of(50, 2)))  # for a G that is not zero
    assert model.loss((x, targets)).item() > loss + 1e-4
    assert step.damping == pytest.approx(1e-3 * 0.95)


def test_a_share_of_the_fisher_products_is_of_the_first_samples() -> None:
    model, (x, labels) = network("classifier", 21)
    step = QuadraticStep(model, DIRECTION, interval=None, fisher_share=0.25)
    before, slope = parameters(model), gradient(model, (x, labels))
    F = dense_fisher(model, (x[:6], labels[:6])) + DAMPING * torch.eye(len(before), dtype=x.dtype)
    step((x, labels))
    D = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(parameters(model) - before, lowest(F, slope, [D])[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("statistics", ["data", "model"])
@pytest.mark.parametrize("direction", [KFAC, EKFAC, partial(TNT, momentum=0.0)], ids=["KFAC", "EKFAC", "TNT"])
def test_a_share_of_the_statistics_is_of_the_first_samples(direction: Callable[..., Any], statistics: str) -> None:
    """The direction of the batch, with the factors of the first quarter of it."""
    model, (x, labels) = network("classifier", 21)
    options = {"frame": "euclidean", "statistics": statistics, "schedule": Schedule(1, 1)}
    share, few = direction(model, statistics_share=0.25, **options), direction(model, **options)
    torch.manual_seed(1)
    share((x, labels))
    found = gradients(model)
    torch.manual_seed(1)
    few((x[:6], labels[:6]))
    gradients(model)
    for one, other in zip(factors(share), factors(few), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    few.write(model.capture((x, labels)), True)
    for one, same in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-12, atol=1e-12)


def test_the_first_samples_have_all_their_rows() -> None:
    """Of three rows a sample, two of five samples: 40 % of them, rounded up."""
    layer, x = torch.nn.Linear(2, 2).double(), torch.arange(30.0).double().view(15, 2)
    io = first(LayerIO(layer, x, x + 1, x + 2, x + 3, log_det=False, copies=3), 0.3)
    assert io.samples == 2
    for k, part in enumerate((io.a, io.u, io.y, io.delta)):
        assert torch.equal(part, x[:6] + k)


def test_iterates_are_averaged_and_judged_there() -> None:
    """By a plain loop; a training that is looked at in between goes on to the same bits."""
    (model, batch), ends = network("tanh", 20), []
    start = {name: value.clone() for name, value in model.state_dict().items()}
    mean = torch.zeros_like(parameters(model))
    for averaging in (0.75, None):
        model.load_state_dict(start)
        step = QuadraticStep(model, DIRECTION, averaging=averaging)
        assert torch.equal(parameters(judged(model, step)), parameters(model))
        for k in range(1, 9):
            step(batch)
            if averaging is None:
                assert torch.equal(parameters(judged(model, step)), parameters(model))
                continue
            keep = min(1 - 1 / k, averaging)
            mean = keep * mean + (1 - keep) * parameters(model)
            here = parameters(model)
            torch.testing.assert_close(parameters(judged(model, step)), mean, rtol=1e-10, atol=1e-12)
            assert torch.equal(parameters(model), here)
            step.eval()
            step.eval()
            torch.testing.assert_close(parameters(model), mean, rtol=1e-10, atol=1e-12)
            step.train()
            step.train()
            assert torch.equal(parameters(model), here)
        ends.append(parameters(model))
    assert torch.equal(*ends)


def test_a_state_is_of_the_iterates_that_are_trained_wherever_it_is_loaded() -> None:
    model, batch = network("tanh", 20)
    step = QuadraticStep(model, DIRECTION, averaging=0.75)
    step(batch)
    saved, there = deepcopy((model.state_dict(), step.state_dict())), parameters(model)
    step(batch)
    step.eval()
    for deed in (step.state_dict, lambda: step(batch)):
        with pytest.raises(RuntimeError, match=r"its average, from which no training goes on: call train\(\) before"):
            deed()
    model.load_state_dict(saved[0])
    step.load_state_dict(saved[1])
    step.train()
    assert torch.equal(parameters(model), there)


def test_state_restores_the_same_continuation_with_all_of_it() -> None:
    (model, batch), ends = network("tanh", 20), []
    make = partial(DIRECTION, schedule=Schedule(1, 2, eager=3), statistics="model", statistics_share=0.5)
    whole = partial(QuadraticStep, model, make, gamma_interval=2, l2=0.01, fisher_share=0.5, averaging=0.9)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for cut in (False, True):
        torch.manual_seed(0)
        model.load_state_dict(start)
        step = whole()
        for _ in range(6):
            if cut:
                state, step = step.state_dict(), whole()
                step.load_state_dict(state)
            step(batch)
        ends.append((parameters(model), step.damping, step.direction.damping, parameters(judged(model, step))))
    assert all(torch.equal(torch.as_tensor(one), torch.as_tensor(other)) for one, other in zip(*ends, strict=True))


def test_what_makes_no_sense_is_refused() -> None:
    model = generic_flow()
    with pytest.raises(TypeError, match=r"gamma_interval and l2 are of K-FAC without a momentum.*got EKFAC"):
        QuadraticStep(model, EKFAC, gamma_interval=10)
    with pytest.raises(TypeError, match=r"got KFAC: set gamma_interval=null and l2=0"):
        QuadraticStep(model, partial(KFAC, momentum=0.9), l2=0.1)
    with pytest.raises(ValueError, match=r"gamma_interval must be a multiple of schedule\.inverse=10, got 15"):
        QuadraticStep(model, KFAC, gamma_interval=15)
    with pytest.raises(ValueError, match="l2 must be at least 0, got -1"):
        QuadraticStep(model, KFAC, l2=-1)
    with pytest.raises(ValueError, match=r"fisher_share must lie in \(0, 1\], got 0"):
        QuadraticStep(model, KFAC, fisher_share=0)
    with pytest.raises(ValueError, match=r"statistics_share must lie in \(0, 1\], got 1\.5"):
        KFAC(model, statistics_share=1.5)
    with pytest.raises(ValueError, match=r"averaging must lie in \[0, 1\), or be null, got 1"):
        QuadraticStep(model, KFAC, averaging=1)
    with pytest.raises(ValueError, match="hooks draw targets for a whole batch: set statistics_share=1"):
        KFAC(Transformer(dim=6), statistics_share=0.5, rest="gradient")
