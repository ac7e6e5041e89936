"""K-FAC on networks against dense Kronecker solves and closed forms, in float64; frames and restored state of all."""

import math
from functools import partial
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stepscale.models import MLP, Autoencoder
from stepscale.optimizers import EKFAC, FOOF, KFAC, Layerwise, NaturalGradient, Relative, Schedule
from stepscale.optimizers.kronecker.two_sided import full_is_cheaper
from tests.conftest import batch_of, generic_flow, gradients
from tests.support.dense import EUCLIDEAN, dense_fisher, homogeneous, layer_gradient, network, written

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("rows", [2, 40])  # preconditioned before and after the product over the rows
@pytest.mark.parametrize("name", ["tanh", "relu", "bernoulli", "classifier"])
def test_kfac_equals_the_dense_kronecker_solve_on_networks(name: str, rows: int) -> None:
    model, batch = network(name, rows)
    KFAC(model, damping=0.1, **EUCLIDEAN)(batch)
    for io in model.capture(batch):
        x, g = homogeneous(io.a), io.delta
        A, G = x.T @ x / rows, g.T @ g / rows
        pi = math.sqrt(A.trace() / len(A) / (G.trace() / len(G)))
        damped = [M + s * torch.eye(len(M), dtype=M.dtype) for M, s in ((G, 0.1**0.5 / pi), (A, 0.1**0.5 * pi))]
        expected = torch.linalg.solve(torch.kron(*damped), layer_gradient(io).reshape(-1)).reshape(len(G), -1)
        torch.testing.assert_close(written(io), expected, rtol=1e-8, atol=1e-10)
    shapes = [full_is_cheaper(rows, *io.layer.weight.shape, *io.layer.weight.shape) for io in model.capture(batch)]
    assert any(shapes) == (rows == 40)


def test_sampled_targets_leave_the_gradient_alone_and_change_the_curvature() -> None:
    model, batch = network("classifier", 40)
    found = []
    for statistics in ("model", "data"):
        KFAC(model, damping=1e16, frame="euclidean", statistics=statistics)(batch)
        found.append([p * 1e16 for p in gradients(model)])
    Layerwise(model)(batch)
    for one, other, expected in zip(*found, gradients(model), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-7)
    steps = [KFAC(model, frame="euclidean", statistics=statistics) for statistics in ("model", "data")]
    for step in steps:
        step(batch)
    assert (steps[0].moments[0].G - steps[1].moments[0].G).abs().max() > 1e-3
    torch.testing.assert_close(steps[0].moments[0].A, steps[1].moments[0].A)


def test_kfac_is_the_fisher_on_a_deep_linear_gaussian_network() -> None:
    """There g does not depend on a, so each diagonal block is exactly kron(G, A) (Bernacchia et al. 2018)."""
    model = MLP([4, 5, 3, 2], activation="tanh", output="gaussian", linear=[0, 1]).double()
    x, rows = batch_of(60, 4), 60
    ios = model.capture((x, torch.zeros(rows, 2, dtype=torch.float64)))
    noise = torch.linalg.qr(torch.randn(rows, 2, dtype=torch.float64)).Q * math.sqrt(rows)  # second moment exactly I
    sampled = model._captured([(io.a, io.u, io.y) for io in ios], noise)
    step = KFAC(model, frame="euclidean", statistics="data", damping=0.01)
    step.observe(sampled)
    F, place = dense_fisher(model, (x, torch.zeros(rows, 2, dtype=torch.float64))), 0
    for io, moments in zip(ios, step.moments, strict=True):
        out, width = io.layer.weight.shape
        index = [place + o * width + i for o in range(out) for i in range(width)]
        block = F[index][:, index]
        torch.testing.assert_close(torch.kron(moments.G, moments.A[:width, :width]), block, rtol=1e-8, atol=1e-10)
        place += out * width + out


def test_linear_regression_is_solved_by_one_undamped_step() -> None:
    """G = I exactly, so K-FAC is Newton: one step lands on the least-squares solution, and FOOF does the same."""
    torch.manual_seed(1)
    model = MLP([3, 2], activation="tanh", output="gaussian").double()
    x, t = batch_of(50, 3), batch_of(50, 2)
    solution = torch.linalg.lstsq(homogeneous(x), t).solution.T
    kfac = KFAC(model, damping=0.0, frame="euclidean", statistics="data")
    noise = torch.linalg.qr(torch.randn(50, 2, dtype=torch.float64)).Q * math.sqrt(50)
    kfac.model.capture_samples = lambda ios: model._captured([(io.a, io.u, io.y) for io in ios], noise)
    kfac.sampler = kfac.model
    for direction in (kfac, FOOF(model, damping=0.0, frame="euclidean")):
        direction((x, t))
        layer = model.layers[0]
        landed = torch.cat([layer.weight - layer.weight.grad, (layer.bias - layer.bias.grad).unsqueeze(1)], dim=1)
        torch.testing.assert_close(landed.detach(), solution)


def test_the_direction_of_a_network_ignores_what_a_log_determinant_would_add() -> None:
    model, batch = network("tanh")
    found = []
    for log_det in ("exact", "stale"):
        KFAC(model, log_det=log_det, **EUCLIDEAN)(batch)
        found.append(gradients(model))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("direction", [KFAC, FOOF, EKFAC, NaturalGradient, Relative])
def test_the_relative_frame_is_refused_where_no_layer_has_a_log_determinant(direction: Any) -> None:
    with pytest.raises(TypeError, match=r"needs layers with log\|det W\| in the loss; this model's 4×5 layer has none"):
        direction(Autoencoder(5, 4, hidden=[4, 2]))(torch.randn(3, 5))


@pytest.mark.parametrize("direction", [KFAC, FOOF, EKFAC])
@pytest.mark.parametrize("model", ["flow", "network"])
def test_state_restores_the_same_continuation(direction: Any, model: str) -> None:
    net, x = (generic_flow(), batch_of()) if model == "flow" else network("tanh")
    make = partial(direction, net, frame="relative" if model == "flow" else "euclidean", schedule=Schedule(2, 3))
    torch.manual_seed(4)
    step, again = make(), make()
    step(x)
    again.load_state_dict(step.state_dict())
    found = []
    for one in (step, again):
        torch.manual_seed(5)
        for _ in range(4):
            one(x)
        found.append(gradients(net))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("direction", [KFAC, partial(KFAC, rank=2), FOOF, EKFAC])
def test_state_is_plain_and_goes_through_a_file(direction: Any) -> None:
    """Of tensors, numbers, lists and dicts alone, so that torch loads it without running anything."""
    torch.manual_seed(4)
    model, x = generic_flow(), batch_of()
    step, again = direction(model), direction(model)
    step(x)
    file = BytesIO()
    torch.save(step.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    found = []
    for one in (step, again):
        torch.manual_seed(5)
        one(x)
        found.append(gradients(model))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("direction", [KFAC, partial(KFAC, rank=2), FOOF, EKFAC])
def test_a_loaded_state_is_not_the_callers(direction: Any) -> None:
    """Averages are taken in place: those of the state that was loaded stay what they are."""
    model, x = generic_flow(), batch_of()
    schedule = Schedule(statistics=1, inverse=5)
    step, again = direction(model, schedule=schedule), direction(model, schedule=schedule)
    step(x)
    saved = step.state_dict()
    before = [leaf.clone() for leaf in tree_leaves(saved) if isinstance(leaf, Tensor)]
    again.load_state_dict(saved)
    for _ in range(3):
        again(batch_of())
    after = [leaf for leaf in tree_leaves(saved) if isinstance(leaf, Tensor)]
    assert all(map(torch.equal, before, after))
