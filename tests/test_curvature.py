"""K-FAC, EKFAC and FOOF on networks, the natural gradient on all: against dense matrices and closed forms, float64."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.models import MLP, Autoencoder, Flow, LayerIO
from stepscale.optimizers import EKFAC, FOOF, KFAC, Layerwise, NaturalGradient, Relative, Schedule
from stepscale.optimizers.frames import inputs
from stepscale.optimizers.kfac import factored_damping
from stepscale.optimizers.kronecker import full_is_cheaper
from stepscale.optimizers.low_rank import randomized_eigh, randomized_inverse
from tests.conftest import batch_of, generic_flow, gradients
from tests.test_models import dense_fisher, network

EVERY = Schedule(statistics=1, inverse=1)
EUCLIDEAN = {"frame": "euclidean", "statistics": "data"}


def homogeneous(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def layer_gradient(io: LayerIO) -> Tensor:
    """∇ of one layer, ``[out, in + 1]``."""
    gradient = io.delta.T @ homogeneous(io.a) / len(io.a)
    if io.log_det:
        gradient[:, :-1] -= torch.linalg.inv(io.layer.weight.detach()).T
    return gradient


def written(io: LayerIO) -> Tensor:
    assert io.layer.weight.grad is not None and io.layer.bias.grad is not None
    return torch.cat([io.layer.weight.grad, io.layer.bias.grad.unsqueeze(1)], dim=1)


# --- K-FAC on networks -----------------------------------------------------------------------------------------------


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
    shapes = [full_is_cheaper(rows, *io.layer.weight.shape) for io in model.capture(batch)]
    assert any(shapes) == (rows == 40)


def test_sampled_targets_leave_the_gradient_alone_and_change_the_curvature() -> None:
    model, batch = network("classifier", 40)
    found = []
    for statistics in ("model", "data"):
        KFAC(model, damping=1e12, frame="euclidean", statistics=statistics)(batch)
        found.append([p * 1e12 for p in gradients(model)])
    Layerwise(model)(batch)
    for one, other, expected in zip(*found, gradients(model), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-7)
    steps = [KFAC(model, frame="euclidean", statistics=statistics) for statistics in ("model", "data")]
    for step in steps:
        step(batch)
    assert (steps[0].state[0]["G"] - steps[1].state[0]["G"]).abs().max() > 1e-3
    torch.testing.assert_close(steps[0].state[0]["A"], steps[1].state[0]["A"])


def test_kfac_is_the_fisher_on_a_deep_linear_gaussian_network() -> None:
    """There g does not depend on a, so each diagonal block is exactly kron(G, A) (Bernacchia et al. 2018)."""
    model = MLP([4, 5, 3, 2], activation="tanh", output="gaussian", linear=[0, 1]).double()
    x, rows = batch_of(60, 4), 60
    ios = model.capture((x, torch.zeros(rows, 2, dtype=torch.float64)))
    noise = torch.linalg.qr(torch.randn(rows, 2, dtype=torch.float64)).Q * math.sqrt(rows)  # second moment exactly I
    sampled = model._captured([(io.a, io.u, io.y) for io in ios], noise)
    step = KFAC(model, frame="euclidean", statistics="data", damping=0.01)
    step._average(sampled)
    F, place = dense_fisher(model, (x, torch.zeros(rows, 2, dtype=torch.float64))), 0
    for io, state in zip(ios, step.state, strict=True):
        out, width = io.layer.weight.shape
        index = [place + o * width + i for o in range(out) for i in range(width)]
        block = F[index][:, index]
        torch.testing.assert_close(torch.kron(state["G"], state["A"][:width, :width]), block, rtol=1e-8, atol=1e-10)
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
    kfac.sampled = True
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


# --- eigenbasis -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_kronecker_scales_are_exact_tikhonov_damping(frame: str) -> None:
    model, x = generic_flow(), batch_of(20)
    EKFAC(model, damping=0.3, scales="kronecker", frame=frame, statistics="data")(x)
    for io in model.capture(x):
        assert io.layer.weight.grad is not None and io.layer.bias.grad is not None
        W, b, d = io.layer.weight.detach(), io.layer.bias.detach(), 5
        rows = homogeneous(io.y if frame == "relative" else io.a)
        A, G = rows.T @ rows / 20, io.delta.T @ io.delta / 20
        gradient = io.delta.T @ rows / 20
        gradient[:, :d] -= torch.eye(d, dtype=W.dtype) if frame == "relative" else torch.linalg.inv(W).T
        dense = torch.kron(G, A) + 0.3 * torch.eye(d * (d + 1), dtype=W.dtype)
        D = torch.linalg.solve(dense, gradient.reshape(-1)).reshape(d, d + 1)
        if frame == "relative":
            D = torch.cat([D[:, :d] @ W, (D[:, :d] @ b + D[:, d]).unsqueeze(1)], dim=1)
        torch.testing.assert_close(written(io), D, rtol=1e-8, atol=1e-9)


def test_measured_scales_are_nearer_the_fisher_than_kroneckers_and_have_its_trace() -> None:
    model, batch = network("tanh", 30)
    io = model.capture(batch)[1]
    scores = torch.einsum("no,ni->noi", io.delta, homogeneous(io.a)).flatten(1)
    F = scores.T @ scores / 30
    distances = []
    for scales in ("measured", "kronecker"):
        step = EKFAC(model, scales=scales, **EUCLIDEAN)
        step(batch)
        state = step.state[1]
        Q = torch.kron(state["Q_G"], state["Q_A"])
        approximation = Q @ torch.diag(state["S"].reshape(-1)) @ Q.T
        distances.append(torch.linalg.matrix_norm(F - approximation).item())
        if scales == "measured":
            torch.testing.assert_close(approximation.trace(), F.trace())
            torch.testing.assert_close(state["S"].reshape(-1), torch.diagonal(Q.T @ F @ Q))
    assert distances[0] < distances[1]


def test_measured_scales_are_averaged_between_eigendecompositions() -> None:
    model = generic_flow(3, 1)
    step = EKFAC(model, statistics="data", schedule=Schedule(statistics=1, inverse=6, decay=0.6))
    batches = [batch_of(10, 3) for _ in range(10)]  # the basis is made anew on the seventh
    for batch in batches:
        step(batch)
    Q_A, Q_G = step.state[0]["Q_A"], step.state[0]["Q_G"]
    moments = []
    for batch in batches:
        (io,) = model.capture(batch)
        moments.append((io.delta @ Q_G).square().T @ (inputs(io, True) @ Q_A).square() / 10)
    a, b, c, d = moments[6:]
    torch.testing.assert_close(step.state[0]["S"], 0.6 * (0.6 * (a + b) / 2 + 0.4 * c) + 0.4 * d)


# --- FOOF -------------------------------------------------------------------------------------------------------------


def test_foof_solves_the_papers_toy() -> None:
    """Inputs (3, 1), (1, 0), labels 1, −1: one undamped step from 0 is (−1, 4), and fits both; (2, 1) does not."""
    model = MLP([2, 1], activation="tanh", output="gaussian", bias=False).double()
    with torch.no_grad():
        model.layers[0].weight.zero_()
    x = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    FOOF(model, damping=0.0, frame="euclidean")((x, torch.tensor([[1.0], [-1.0]], dtype=torch.float64)))
    (direction,) = gradients(model)
    torch.testing.assert_close(-direction, torch.tensor([[-1.0, 4.0]], dtype=torch.float64))


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_foof_is_a_solve_with_the_input_factor(frame: str) -> None:
    model, x = generic_flow(), batch_of(20)
    FOOF(model, damping=0.2, frame=frame)(x)
    for io in model.capture(x):
        W, b, d = io.layer.weight.detach(), io.layer.bias.detach(), 5
        rows = homogeneous(io.y if frame == "relative" else io.a)
        gradient = io.delta.T @ rows / 20
        gradient[:, :d] -= torch.eye(d, dtype=W.dtype) if frame == "relative" else torch.linalg.inv(W).T
        damped = rows.T @ rows / 20 + 0.2 * torch.eye(d + 1, dtype=W.dtype)
        D = torch.linalg.solve(damped, gradient.T).T
        if frame == "relative":
            D = torch.cat([D[:, :d] @ W, (D[:, :d] @ b + D[:, d]).unsqueeze(1)], dim=1)
        torch.testing.assert_close(written(io), D, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["tanh", "classifier"])  # layers that narrow and that widen: either association
def test_foof_is_a_solve_on_networks(name: str) -> None:
    model, batch = network(name, 20)
    FOOF(model, damping=0.2, frame="euclidean")(batch)
    for io in model.capture(batch):
        damped = homogeneous(io.a).T @ homogeneous(io.a) / 20
        damped.diagonal().add_(0.2)
        torch.testing.assert_close(written(io), torch.linalg.solve(damped, layer_gradient(io).T).T)


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_foof_is_the_relative_gradient_where_u_is_white(frame: str) -> None:
    model = generic_flow(4, 1, bias=False)
    W = model.layers[0].weight.detach()
    u = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64)).Q * math.sqrt(50)
    x = torch.linalg.solve(W, u.T).T
    FOOF(model, damping=0.0, frame=frame)(x)
    (got,) = gradients(model)
    Relative(model)(x)
    (expected,) = gradients(model)
    assert (got - expected).abs().max() < 1e-10


def test_closed_form_of_foof_on_one_gaussian_layer() -> None:
    """E = I − C⁻¹, C = E[u uᵀ]; and so is K-FAC's with A from data and G the model's, I."""
    model = generic_flow(4, 1, bias=False)
    x = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    u = x @ model.layers[0].weight.detach().T
    FOOF(model, damping=0.0)(x)
    (dW,) = gradients(model)
    E = dW @ torch.linalg.inv(model.layers[0].weight.detach())
    expected = torch.eye(4, dtype=torch.float64) - torch.linalg.inv(u.T @ u / 200)
    assert (E - expected).abs().max() < 1e-10


def test_foofs_damping_is_the_papers_over_the_batch() -> None:
    """ΔWᵀ = η (λ I + aᵀa)⁻¹ aᵀg (equation 6), sums over the batch: ours at λ/B and η/B, the gradient a mean."""
    model = MLP([4, 3], activation="tanh", output="gaussian", bias=False).double()
    x, t = batch_of(10, 4), batch_of(10, 3)
    a, g = model.capture((x, t))[0].a, model.capture((x, t))[0].delta
    paper = 30 * torch.linalg.solve(100 * torch.eye(4, dtype=torch.float64) + a.T @ a, a.T @ (g / 10)).T
    FOOF(model, damping=100 / 10, frame="euclidean")((x, t))
    torch.testing.assert_close(gradients(model)[0] * 30 / 10, paper)


# --- randomised low rank ----------------------------------------------------------------------------------------------


def spectrum(values: Tensor) -> Tensor:
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return (Q * values) @ Q.T


def test_a_matrix_of_low_rank_is_found_exactly() -> None:
    M = spectrum(torch.cat([torch.arange(1.0, 6), torch.zeros(25)]).double())
    values, vectors = randomized_eigh(M, 5)
    torch.testing.assert_close((vectors * values) @ vectors.T, M, atol=1e-10, rtol=0)
    torch.testing.assert_close(values, torch.arange(1.0, 6).double())


def test_the_error_is_within_the_expected_bound() -> None:
    """Theorem 10.5 of Halko et al.: E‖M − QQᵀM‖_F ≤ √(1 + k/(p−1)) (Σ_{j>k} σ_j²)^½ without power iterations."""
    values, k, p = 0.8 ** torch.arange(40, dtype=torch.float64), 8, 6
    errors = []
    for _ in range(30):
        M = spectrum(values)
        _, vectors = randomized_eigh(M, k + p, oversampling=0, power=0)
        errors.append(torch.linalg.matrix_norm(M - vectors @ vectors.T @ M).item())
    tail = values.sort().values[: 40 - k].square().sum().sqrt()
    assert sum(errors) / 30 <= math.sqrt(1 + k / (p - 1)) * tail
    with_power = randomized_eigh(spectrum(values), k)[0]
    torch.testing.assert_close(with_power, values[:k].flip(0), rtol=1e-3, atol=0)


def test_low_rank_inverse_is_exact_at_full_rank_and_leaves_the_complement_to_the_damping() -> None:
    M = spectrum(torch.linspace(0.1, 3, 12).double())
    shift = torch.tensor(0.5, dtype=torch.float64)
    exact = torch.linalg.inv(M + shift * torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(randomized_inverse(M, shift, 12), exact)
    partly = torch.linalg.eigvalsh(randomized_inverse(M, shift, 3))
    torch.testing.assert_close(partly[-9:], torch.full((9,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_kfac_of_full_rank_is_kfac(frame: str) -> None:
    model, x = generic_flow(), batch_of(20)
    found = []
    for rank in (None, 6):
        KFAC(model, rank=rank, frame=frame, statistics="data")(x)
        found.append(gradients(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_without_any_gradient_is_damped_all_the_same() -> None:
    shifts = factored_damping(torch.eye(3), torch.zeros(2, 2), 0.25)
    assert [shift.item() for shift in shifts] == [0.5, 0.5]


# --- natural gradient -------------------------------------------------------------------------------------------------


def dense_scores(model: Any, x: Tensor, targets: Tensor | None, relative: bool) -> list[Tensor]:
    """Each layer's scores ``[batch, out · (in + 1)]``, by autograd of each row's loss, in the frame asked for."""
    rows: list[list[Tensor]] = [[] for _ in model.layers]
    for k in range(len(x)):
        model.zero_grad()
        batch = x[k : k + 1] if targets is None else (x[k : k + 1], targets[k : k + 1])
        model.loss(batch).backward()
        for row, layer in zip(rows, model.layers, strict=True):
            W, b = layer.weight.detach(), layer.bias.detach()
            dW, db = layer.weight.grad, layer.bias.grad
            if relative:  # the chain rule of (I + E) W and (I + E) b + e at E = 0, e = 0
                dW = dW @ W.T + torch.outer(db, b)
            row.append(torch.cat([dW, db.unsqueeze(1)], dim=1).flatten())
    model.zero_grad()
    return [torch.stack(row) for row in rows]


def dense_natural(data: list[Tensor], fisher: list[Tensor], damping: float, joint: bool) -> list[Tensor]:
    def solve(S: Tensor, gradient: Tensor) -> Tensor:
        F = S.T @ S / len(S)
        return torch.linalg.solve(F + damping * torch.eye(len(F), dtype=F.dtype), gradient)

    if not joint:
        return [solve(S, s.mean(0)) for S, s in zip(fisher, data, strict=True)]
    whole = solve(torch.cat(fisher, dim=1), torch.cat(data, dim=1).mean(0))
    return list(whole.split([S.shape[1] for S in data]))


@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("blocks", ["joint", "layer"])
@pytest.mark.parametrize("statistics", ["data", "model"])
@pytest.mark.parametrize("kind", ["relative", "euclidean", "network"])
def test_natural_gradient_equals_the_dense_solve(kind: str, statistics: str, blocks: str, damping: float) -> None:
    if kind == "network":
        model, x = network("tanh", 9)
        samples = model.capture_samples(model.capture(x))
        drawn, targets = x, samples[-1].y - samples[-1].delta  # δ = y − t
        model.capture_samples = lambda ios: samples
    else:
        model, x = generic_flow(), batch_of(9)
        drawn, targets = model.sample(9), None
        model.capture_samples = lambda ios: model.capture(drawn)
    relative = kind == "relative"
    data = dense_scores(model, x, x if kind == "network" else None, relative)
    fisher = data if statistics == "data" else dense_scores(model, drawn, targets, relative)
    frame = "relative" if relative else "euclidean"
    NaturalGradient(model, damping=damping, blocks=blocks, frame=frame, statistics=statistics)(x)
    for layer, expected in zip(model.layers, dense_natural(data, fisher, damping, blocks == "joint"), strict=True):
        D = expected.reshape(layer.out_features, -1)
        if relative:
            W, b = layer.weight.detach(), layer.bias.detach()
            D = torch.cat([D[:, :-1] @ W, (D[:, :-1] @ b + D[:, -1]).unsqueeze(1)], dim=1)
        found = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], dim=1)
        assert (found - D).abs().max() < 1e-10 * max(1, D.abs().max())


def test_heavily_damped_natural_gradient_is_the_relative_gradient() -> None:
    model, x = generic_flow(), batch_of()
    NaturalGradient(model, damping=1e12)(x)
    found = gradients(model)
    Relative(model, bias="affine")(x)
    for one, other in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(one * 1e12, other, rtol=1e-8, atol=1e-8)


def test_natural_gradient_of_one_row_is_its_score_scaled() -> None:
    model, x = generic_flow(), batch_of(1)
    (scores,) = [torch.cat(dense_scores(model, x, None, True), dim=1)]
    Relative(model, bias="affine")(x)
    plain = gradients(model)
    NaturalGradient(model, damping=0.5)(x)
    for one, other in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(one, other / (0.5 + scores.square().sum()))


def test_natural_gradient_in_float32_keeps_its_digits() -> None:
    """The direct solve for c; by (1/B − w)/λ it would lose all of them at so small a damping."""
    model, x = generic_flow(40, 2), batch_of(30, 40)
    found = []
    for dtype in (torch.float64, torch.float32):
        NaturalGradient(model.to(dtype), damping=1e-4)(x.to(dtype))
        found.append(torch.cat([g.double().flatten() for g in gradients(model)]))
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"blocks": "rows"}, "joint, layer, got 'rows'"),
        ({"statistics": "none"}, "model, data, got 'none'"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NaturalGradient(Flow(3), **options)
