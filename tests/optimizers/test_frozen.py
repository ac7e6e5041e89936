"""Frozen parameters: bitwise where they were, no part of any direction; against dense restricted problems."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.records.schema import Config
from stepscale.models import Batch, GaussianPosterior, LayerIO, ThermalState
from stepscale.optimizers import (
    EKFAC,
    FOOF,
    KBFGS,
    KFAC,
    KLDWRM,
    QBVI,
    TNT,
    ExplicitInverse,
    HessianFree,
    Kronecker,
    LanczosNewton,
    Laplace,
    MiniBlock,
    MirrorDescent,
    NaturalGradient,
    QuantumNatural,
    Relative,
    RelativeSGD,
    ScoreGradient,
    SelfNormalizing,
    Shampoo,
    StochasticTrace,
    pair,
)
from tests.conftest import batch_of, generic_flow
from tests.support.compose import built, composed
from tests.support.dense import dense_fisher, network
from tests.support.restricted import Free, free_layers, scores
from tests.support.workloads import OPTIMIZERS

pytestmark = pytest.mark.numerical

LAYER, BIAS, WEIGHT = ["layers.1.weight", "layers.1.bias"], ["layers.0.bias"], ["layers.2.weight"]
EACH = [*BIAS, *LAYER, *WEIGHT]
POSTERIOR = partial(GaussianPosterior, 2), (torch.ones(4, 2), torch.ones(4))
THERMAL = partial(ThermalState, 1, 2), torch.zeros(1, 1)
SGD = partial(torch.optim.SGD, lr=0.01)
MODELS: dict[str, Callable[[], tuple[Any, Batch]]] = {
    "flow": lambda: (generic_flow(), batch_of(9)),
    "autoencoder": lambda: network("tanh", 9),
    "classifier": lambda: network("classifier", 9),
}
ONLY_FLOWS = {"naive", "inverse", "stale_inverse", "self_normalizing", "stochastic_trace"}
SERVED = [
    (model, name)
    for model in MODELS
    for name in OPTIMIZERS
    if model == "flow" or not (name in ONLY_FLOWS or name.startswith("relative"))
]
served = pytest.mark.parametrize(("kind", "name"), SERVED)


def problem(kind: str, name: str, frozen: list[str]) -> tuple[Any, Any, Batch]:
    """Return a float64 model with some parameters frozen, the step of an optimizer's file, and a batch."""
    torch.manual_seed(0)
    model, batch = MODELS[kind]()
    for parameter in frozen:
        model.get_parameter(parameter).requires_grad_(False)
    return model, built(configuration(kind, name))(model), batch


@cache
def configuration(kind: str, name: str) -> Config:
    """Return an optimizer's file, with a learning rate at which the fused step halves none, and few Lanczos vectors."""
    overrides = {"relative_fused": ["optimizer.lr=1e-5"], "lanczos_newton": ["optimizer.direction.iterations=3"]}
    found: Config = composed(f"optimizer={name}", f"model={kind}", "dim=5", *overrides.get(name, []))["optimizer"]
    return found


def damped_solve(M: Tensor, damping: float, right: Tensor) -> Tensor:
    return torch.linalg.solve(M + damping * torch.eye(len(M), dtype=M.dtype), right)


def krylov(direction: LanczosNewton, model: Any, batch: Batch) -> list[Tensor]:
    """Saddle-free Newton on the span of g, H g, H² g, of the Hessian between the parameters that are not frozen."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        gradient = torch.autograd.grad(model.loss(batch), free, create_graph=True)
        g = torch.cat([part.flatten() for part in gradient])
        rows = [torch.autograd.grad(entry, free, retain_graph=True, materialize_grads=True) for entry in g]
    H, g = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]), g.detach()
    Q = torch.linalg.qr(torch.stack([g, H @ g, H @ H @ g], dim=1)).Q
    values, vectors = torch.linalg.eigh(Q.T @ H @ Q)
    return [Q @ (vectors @ ((vectors.T @ (Q.T @ g)) / (values.abs() + direction.damping)))]


def natural(direction: NaturalGradient, model: Any, batch: Batch) -> list[Tensor]:
    S = torch.cat(scores(model, batch, direction.relative), dim=1)
    whole = damped_solve(S.T @ S / len(S), direction.damping, S.mean(0))
    return list(whole.split([len(free.W) * free.width for free in free_layers(model)]))


def kronecker(direction: Kronecker, model: Any, batch: Batch) -> list[Tensor]:
    """Each free layer's solve with its own dense Kronecker factors, of the rows that the direction drew."""
    ios = model.capture(batch)
    drawn = ios if direction.sampler is None else model.capture_samples(ios)
    places = {f"model.layers.{k}": io for k, io in enumerate(drawn)}
    found = []
    for free, S in zip(free_layers(model), scores(model, batch, direction.relative), strict=True):
        io = places[free.name]
        x, g = free.inputs(io, direction.relative), io.delta
        if isinstance(direction, TNT | Shampoo | MiniBlock):
            found.append(between_squares(direction, mean_gradient(free, io, x), len(x), S.mean(0)))
        else:
            found.append(preconditioned(direction, x.T @ x / len(x), g.T @ g / len(x), x, g, S.mean(0)))
    return found


def mean_gradient(free: Free, io: LayerIO, x: Tensor) -> Tensor:
    """In the relative frame where there is a log-determinant, whose part is −I then."""
    S = io.delta.T @ x / len(x)
    return S - torch.eye(*S.shape, dtype=S.dtype) if io.log_det and free.weight_free else S


def between_squares(direction: Kronecker, S: Tensor, batch: int, gradient: Tensor) -> Tensor:
    G, A = S @ S.T, S.T @ S
    one, damping = torch.eye(len(G), dtype=G.dtype), direction.damping
    if isinstance(direction, MiniBlock):
        return damped_solve(torch.kron(one, A / len(G)), damping, gradient)
    if isinstance(direction, Shampoo):
        roots = []
        for M in (G, A):
            values, Q = torch.linalg.eigh(M)
            roots.append(Q @ torch.diag((values.clamp_min(0) + damping) ** -0.25) @ Q.T)
        return torch.kron(*roots) @ gradient
    G, A = batch * G, batch * A
    mean = math.sqrt(G.trace() / (len(G) * len(A)))
    U, V = G / (mean * len(A)), A / (mean * len(G))
    damped = torch.kron(U + damping * one, V + damping * torch.eye(len(A), dtype=A.dtype))
    return torch.linalg.solve(damped, gradient)


def preconditioned(direction: Kronecker, A: Tensor, G: Tensor, x: Tensor, g: Tensor, gradient: Tensor) -> Tensor:
    one = torch.eye(len(G), dtype=G.dtype)
    if isinstance(direction, FOOF):
        return damped_solve(torch.kron(one, A), direction.damping, gradient)
    if isinstance(direction, KBFGS):
        return damped_solve(torch.kron(one, A), math.sqrt(direction.damping), gradient)
    if isinstance(direction, EKFAC):
        Q = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
        rows = torch.einsum("no,ni->noi", g, x).flatten(1) @ Q
        return Q @ ((Q.T @ gradient) / (rows.square().mean(0) + direction.damping))
    assert isinstance(direction, KFAC)
    if isinstance(direction, KLDWRM) and direction.quadratic:
        A = A + direction.rate * A  # F + η F
    pi, root = math.sqrt(A.trace() / len(A) / (G.trace() / len(G))), math.sqrt(direction.damping)
    damped = torch.kron(G + root / pi * one, A + root * pi * torch.eye(len(A), dtype=A.dtype))
    return torch.linalg.solve(damped, gradient)


def trace_estimate(model: Any, batch: Batch) -> list[Tensor]:
    """The exact gradient with the estimate in place of W⁻ᵀ; a frozen layer draws no signs."""
    found = []
    for free, S in zip(free_layers(model), scores(model, batch, relative=False), strict=True):
        D = S.mean(0).reshape(len(free.W), free.width)
        if free.weight_free:
            signs = 2.0 * torch.randint(0, 2, (5, 1)).double() - 1
            inverse = torch.linalg.inv(free.W).T
            D[:, :5] += inverse - inverse @ signs @ signs.T
        found.append(D.flatten())
    return found


def expected(step: Any, model: Any, batch: Batch) -> list[Tensor]:
    """ΔW and Δb of every free layer by the restricted problem, flat; what a step writes into ``.grad``."""
    direction = getattr(step, "direction", step)
    if isinstance(direction, KLDWRM):
        step.tell_rate()
    if isinstance(direction, LanczosNewton):
        return krylov(direction, model, batch)
    relative, affine = isinstance(direction, Relative | RelativeSGD) or getattr(direction, "relative", False), True
    if isinstance(direction, NaturalGradient):
        found = natural(direction, model, batch)
    elif isinstance(direction, Kronecker):
        found = kronecker(direction, model, batch)
    elif isinstance(direction, StochasticTrace):
        found = trace_estimate(model, batch)
    else:  # exact, in the parameters or in the group of W alone
        affine = False
        found = [S.mean(0) for S in scores(model, batch, relative, affine)]
    moves = [
        free.moved(D.reshape(len(free.W), free.width), relative, affine)
        for free, D in zip(free_layers(model), found, strict=True)
    ]
    return [part for free, move in zip(free_layers(model), moves, strict=True) for part in chosen(free, move)]


def chosen(free: Free, move: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part.flatten() for part, asked in zip(move, (free.weight_free, free.bias_free), strict=True) if asked]


@served
@pytest.mark.parametrize("frozen", [LAYER, BIAS, EACH], ids=["layer", "bias", "of each"])
def test_the_direction_is_that_of_the_restricted_problem(kind: str, name: str, frozen: list[str]) -> None:
    model, step, batch = problem(kind, name, frozen)
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in free]
    torch.manual_seed(3)
    want = torch.cat(expected(step, model, batch))
    torch.manual_seed(3)
    step(batch)
    moved = [old - parameter.detach() for old, parameter in zip(before, free, strict=True)]
    written = moved if name == "relative_fused" else [parameter.grad for parameter in free]
    got = torch.cat([part.flatten() for part in written])
    if name == "relative_fused":
        want = step.lr * want
    if name in ("kfac_clipped", "tnt_trusted"):
        want = want * (got.norm() / want.norm()).clamp_max(1)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9 * float(want.abs().max()))
    if name == "kfac_whole":  # δ = α Δ, to rounding
        torch.testing.assert_close(torch.cat([part.flatten() for part in moved]), -step.coefficients[0] * got)


@served
def test_what_is_frozen_stays_bitwise_where_it_was(kind: str, name: str) -> None:
    model, step, batch = problem(kind, name, EACH)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(4):
        step(batch)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == set(EACH)
    assert all(model.get_parameter(parameter).grad is None for parameter in EACH)


@served
def test_no_work_is_spent_on_a_frozen_layer(kind: str, name: str) -> None:
    flops = []
    for frozen in ([], LAYER):
        _, step, batch = problem(kind, name, frozen)
        with OperationLog() as log:
            step(batch)
        flops.append(log.flops)
    assert flops[1] < flops[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_frozen_is_said(name: str) -> None:
    with pytest.raises(TypeError, match=r"the parameters of Flow are frozen: set requires_grad_\(True\) on what is"):
        problem("flow", name, [f"layers.{k}.{part}" for k in range(3) for part in ("weight", "bias")])


@pytest.mark.parametrize("name", ["layerwise", "relative", "kfac", "natural"])
def test_no_update_moves_what_is_frozen(name: str) -> None:
    """By weight decay, by momentum or by a gradient from before it was frozen: at first, or after some steps."""
    torch.manual_seed(0)
    model, x = generic_flow(), batch_of()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    direction = built(composed(f"optimizer={name}", "dim=5")["optimizer"]["direction"])
    for frozen in (BIAS, LAYER):
        for parameter in frozen:
            model.get_parameter(parameter).requires_grad_(False)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        step = pair(model, direction, partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1))
        for _ in range(3):
            step(x)
        still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
        assert still == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_with_all_weights_frozen_the_biases_alone_are_trained() -> None:
    for name in ("relative_fused", "relative", "kfac", "natural"):
        model, step, batch = problem("flow", name, [f"layers.{k}.weight" for k in range(3)])
        before = torch.cat([layer.bias.detach() for layer in model.layers])
        gradient = torch.cat([S.mean(0) for S in scores(model, batch, relative=False)])
        step(batch)
        moved = torch.cat([layer.bias.detach() for layer in model.layers]) - before
        assert moved @ gradient < 0, "downhill"


def test_a_layer_frozen_between_steps_is_left_alone_from_then_on() -> None:
    model, x = generic_flow(), batch_of()
    step = pair(model, Relative, partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1))
    step(x)
    model.layers[1].requires_grad_(False)
    before = model.layers[1].weight.detach().clone()
    step(x)
    assert torch.equal(model.layers[1].weight, before)


@pytest.mark.parametrize("frozen", [LAYER, BIAS, WEIGHT], ids=["layer", "bias", "weight"])
def test_moments_of_what_has_been_frozen_since_are_refused(frozen: list[str]) -> None:
    model, x = generic_flow(), batch_of()
    direction = KFAC(model)
    direction(x)
    for parameter in frozen:
        model.get_parameter(parameter).requires_grad_(False)
    with pytest.raises(ValueError, match=r"KFAC has moments of \[6, 6, 6\] trained inputs .* build the step anew"):
        direction(x)


def test_moments_of_another_layer_of_the_same_shape_are_refused() -> None:
    model, x = generic_flow(), batch_of()
    model.layers[0].requires_grad_(False)
    direction, again = KFAC(model), KFAC(model)
    direction(x)
    again.load_state_dict(direction.state_dict())
    model.layers[0].requires_grad_(True)
    model.layers[1].requires_grad_(False)
    for one in (direction, again):
        with pytest.raises(ValueError, match=r"moments of \[0, 6, 6\] .* and now \[6, 0, 6\] are trained"):
            one(x)


@pytest.mark.parametrize(
    "build",
    [partial(HessianFree, floor=1.0), partial(pair, direction=LanczosNewton, update=SGD)],
    ids=["hf", "lanczos"],
)
def test_a_step_after_freezing_is_that_of_one_built_anew(build: Any) -> None:
    model, batch = network("tanh", 9)
    step = build(model)
    for frozen in ([], LAYER, BIAS):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        other = deepcopy(model)
        for one in (step, build(other)):
            torch.manual_seed(3)
            one(batch)
        assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("build", "make", "batch", "frozen"),
    [
        (QBVI, *POSTERIOR, "log_scale"),
        (Laplace, *POSTERIOR, "mean"),
        (partial(pair, direction=QuantumNatural, update=SGD), *THERMAL, "energy"),
        (MirrorDescent, *THERMAL, "circuit"),
    ],
    ids=["qbvi", "laplace", "quantum_natural", "mirror_descent"],
)
def test_what_moves_all_or_nothing_refuses_what_is_frozen(build: Any, make: Any, batch: Batch, frozen: str) -> None:
    """When it is built, and when it is called."""
    model = make()
    step = build(model)
    said = f"moves all of {type(model).__name__} or nothing, and {frozen} cannot move: set requires_grad"
    model.get_parameter(frozen).requires_grad_(False)
    for deed in (lambda: step(batch), lambda: build(model)):
        with pytest.raises(TypeError, match=said):
            deed()


def test_the_score_gradient_leaves_out_what_has_been_frozen_since() -> None:
    make, batch = POSTERIOR
    model = make()
    step = pair(model, ScoreGradient, SGD)
    model.mean.requires_grad_(False)
    step(batch)
    assert not model.mean.any() and model.mean.grad is None and model.log_scale.grad is not None


@pytest.mark.parametrize("direction", [partial(ExplicitInverse, interval=10), SelfNormalizing])
@pytest.mark.parametrize(("frozen", "then"), [([0], []), ([0], [1]), ([], [2])], ids=["freed", "another", "frozen"])
def test_an_inverse_stays_its_own_layer_s_whatever_is_frozen(
    direction: Any, frozen: list[int], then: list[int]
) -> None:
    """The weights do not move, so that an inverse of any age is that of today."""
    model, x = generic_flow(), batch_of()
    step = direction(model)
    for held in (frozen, then):
        for place, layer in enumerate(model.layers):
            layer.weight.requires_grad_(place not in held)
        step(x)
        found = [layer.weight.grad for layer in model.layers]
        trained = [layer.weight for layer in model.layers if layer.weight.requires_grad]
        exact = iter(torch.autograd.grad(model.loss(x), trained))
        for place, gradient in enumerate(found):
            assert gradient is None if place in held else torch.allclose(gradient, next(exact), atol=1e-10)


@pytest.mark.parametrize("frozen", [LAYER, BIAS, WEIGHT, EACH], ids=["layer", "bias", "weight", "of each"])
def test_the_tracked_log_determinant_counts_what_is_frozen(frozen: list[str]) -> None:
    model, step, _ = problem("flow", "relative_fused", frozen)
    step.lr = 0.02
    for _ in range(20):
        x = batch_of()
        before = -model.loss(x).item()
        step(x)
        assert step.log_likelihood().item() == pytest.approx(before, abs=1e-10)
    assert abs(step.anchor()) < 1e-9


def test_the_quadratic_models_length_is_the_restricted_problems() -> None:
    """On the first step δ = α Δ minimises the dense restricted model: slope Δ + α Δ (F + λ I) Δ = 0."""
    model, step, batch = problem("autoencoder", "kfac_whole", EACH)
    free = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in model.parameters()])
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    F = dense_fisher(model, batch)[free][:, free]
    model.loss(batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])[free]
    for parameter in EACH:
        model.get_parameter(parameter).requires_grad_(False)
    damping = step.damping
    step(batch)
    D = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert step.coefficients[0].item() == pytest.approx(-(gradient @ D / (D @ F @ D + damping * D @ D)).item())
