"""Curvature of weights that see several rows of a sample: dense Fisher blocks, and directions by hand, in float64."""

import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from stepscale.bench.timing.workload import Workload
from stepscale.models import MLP, Hooked
from stepscale.optimizers import EKFAC, FOOF, KFAC, KLClipped, Layerwise, NaturalGradient, QuadraticStep, Schedule, pair
from tests.conftest import batch_of, gradients
from tests.support.dense import EUCLIDEAN
from tests.support.hooked import Attention, example, seen

pytestmark = [
    pytest.mark.numerical,
    pytest.mark.filterwarnings("ignore:Using padding=.same. with even"),
]

N, T = 5, 3
BY_HOOKS = {**EUCLIDEAN, "rest": "gradient"}
LAYERS = {
    "attention": [["qkv"], ["out"], ["wide"], ["narrow"], ["head"]],
    "attention by rows": [["qkv"], ["out"], ["wide"], ["narrow"], ["head"]],
    "convnet": [["first"], ["same"], ["last"], ["head"]],
    "tied": [["head"]],  # the others apart
}
DIRECTIONS = {"kfac": KFAC, "foof": FOOF, "ekfac": EKFAC, "ekfac kronecker": partial(EKFAC, scales="kronecker")}


class DeepLinear(nn.Module):
    """Linear layers over tokens, Gaussian outputs a token, or one a sample of the tokens' mean; noise of moment I."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.layers = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2)])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = layer(x.mean(1, keepdim=True) if self.pooled and k == 2 else x)
        return x

    def loss(self, batch: Tensor) -> Tensor:
        return 0.5 * self(batch).square().sum((1, 2)).mean()

    def sampled_loss(self, batch: Tensor) -> Tensor:
        y = self(batch)
        rows = y[..., 0].numel()
        noise = torch.linalg.qr(torch.randn(rows, 2, dtype=y.dtype)).Q * math.sqrt(rows)
        return 0.5 * (y - y.detach() - noise.view_as(y)).square().sum((1, 2)).mean()


def fisher_block(model: Any, batch: Tensor, layer: nn.Linear) -> Tensor:
    """The dense Fisher matrix of [W, b] of a layer: the mean of JᵀJ, J of a sample's outputs, row by row."""
    total = torch.zeros(1, dtype=batch.dtype)
    for row in batch:
        J = []
        for output in model(row[None]).flatten():
            dW, db = torch.autograd.grad(output, [layer.weight, layer.bias], retain_graph=True)
            J.append(torch.cat([dW, db.unsqueeze(1)], dim=1).flatten())
        total = total + torch.stack(J).T @ torch.stack(J) / len(batch)
    return total


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_each_approximation_is_exact_on_deep_linear_networks_in_its_own_setting(pooled: bool, shared: str) -> None:
    model, batch = DeepLinear(pooled), torch.randn(N, T, 4, dtype=torch.float64)
    step = KFAC(model, frame="euclidean", shared=shared)
    step(batch)
    off = []
    for layer, moments in zip(model.layers, step.moments, strict=True):
        block = fisher_block(model, batch, layer)
        off.append(float((torch.kron(moments.G, moments.A) - block).norm() / block.norm()))
    if (shared == "reduce") == pooled:
        assert max(off) < 1e-12
    else:
        assert off[0] > 0.1 and off[1] > 0.1


def by_hand(direction: Any, x: Tensor, g: Tensor, damping: float, terms: int, reduce: bool) -> Tensor:
    """G⁻¹∇A⁻¹ and its relatives of rows ``[batch, rows, …]``: x with a one, g the gradients of the mean loss."""
    gradient = torch.einsum("nro,nri->oi", g, x)
    x, g = x.reshape(terms, -1, x.shape[-1]), g.reshape(terms, -1, g.shape[-1]) * terms
    if reduce:
        x, g = x.mean(1, keepdim=True), g.sum(1, keepdim=True)
    A = torch.einsum("nri,nrj->ij", x, x) / x.shape[0] / x.shape[1]
    G = torch.einsum("nro,nrp->op", g, g) / terms
    one, other = (torch.eye(len(M), dtype=M.dtype) for M in (G, A))
    if isinstance(direction, FOOF):
        return gradient @ torch.linalg.inv(A + damping * other)
    if isinstance(direction, KFAC):
        pi = math.sqrt(A.trace() / len(A) / (G.trace() / len(G)))
        left, right = G + math.sqrt(damping) / pi * one, A + math.sqrt(damping) * pi * other
        return torch.linalg.inv(left) @ gradient @ torch.linalg.inv(right)
    (d_G, Q_G), (d_A, Q_A) = torch.linalg.eigh(G), torch.linalg.eigh(A)
    S = torch.outer(d_G, d_A)
    if direction.measured:
        S = torch.einsum("nro,nri->oi", (g @ Q_G) ** 2, (x @ Q_A) ** 2) / terms
    return Q_G @ ((Q_G.T @ gradient @ Q_A) / (S + damping)) @ Q_A.T


def written(model: Any, name: str) -> Tensor:
    module = model.get_submodule(name)
    weight = module.weight.grad.flatten(1)
    return weight if module.bias is None else torch.cat([weight, module.bias.grad.unsqueeze(1)], dim=1)


def rows_with_ones(model: Any, batch: Any, names: list[str]) -> tuple[Tensor, Tensor]:
    x, g = seen(model, batch, names)
    if model.get_submodule(names[0]).bias is not None:
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=2)
    return x, g


@pytest.mark.parametrize("shared", ["expand", "reduce"])
@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_direction_serves_attention_and_convolutions(name: str, kind: str, shared: str) -> None:
    """A convolution by its unfolded patches, a module that is called twice by all its rows."""
    model, batch = example(name)
    options = {k: v for k, v in BY_HOOKS.items() if kind != "foof" or k != "statistics"}
    direction = DIRECTIONS[kind](model, damping=0.1, shared=shared, **options)
    with torch.no_grad():
        direction(batch)
    terms = model.loss_terms(batch) if isinstance(model, Attention) else len(batch if name == "tied" else batch[0])
    for names in LAYERS[name]:
        expected = by_hand(direction, *rows_with_ones(model, batch, names), 0.1, terms, shared == "reduce")
        torch.testing.assert_close(written(model, names[0]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_a_weight_of_several_layers_is_one_that_sees_all_their_rows(shared: str) -> None:
    """Layers of one weight and biases of their own: W, and each b, are factors apart; ``one`` is called twice."""
    model, batch = example("tied")
    direction = KFAC(model, damping=0.1, shared=shared, **EUCLIDEAN)
    direction(batch)
    hand = partial(by_hand, direction, damping=0.1, terms=len(batch), reduce=shared == "reduce")
    x, g = seen(model, batch, ["one", "other", "bare"])
    torch.testing.assert_close(model.one.weight.grad, hand(x, g), rtol=1e-10, atol=1e-12)
    for layer in ("one", "other"):
        x, g = seen(model, batch, [layer])
        ones = torch.ones_like(x[..., :1])
        found = model.get_submodule(layer).bias.grad.unsqueeze(1)
        torch.testing.assert_close(found, hand(ones, g), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_heavy_damping_gives_the_gradient_of_all_uses(name: str) -> None:
    model, batch = example(name)
    KFAC(model, damping=1e20, **BY_HOOKS)(batch)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    Layerwise(model)(batch)
    for name, parameter in model.named_parameters():
        scale = 1 if "embedding" in name or "norm" in name else 1e20
        assert (found[name] * scale - parameter.grad).abs().max() < 1e-6 * parameter.grad.abs().max() + 1e-14


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(("name", "layer"), [("attention by rows", "wide"), ("convnet", "first")])
def test_what_is_frozen_of_a_layer_with_tokens_has_no_part(name: str, layer: str, frozen: str) -> None:
    model, batch = example(name)
    module = model.get_submodule(layer)
    x, g = seen(model, batch, [layer])
    module.get_parameter(frozen).requires_grad_(False).grad = torch.ones_like(module.get_parameter(frozen))
    direction = KFAC(model, damping=0.1, **BY_HOOKS)
    direction(batch)
    assert module.get_parameter(frozen).grad is None
    x = torch.ones_like(x[..., :1]) if frozen == "weight" else x
    found = module.bias.grad.unsqueeze(1) if frozen == "weight" else module.weight.grad.flatten(1)
    expected = by_hand(direction, x, g, 0.1, len(x), reduce=False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rows_and_rank_decide_nothing_but_the_order_of_the_products() -> None:
    """Few rows of wide layers, factors first; many rows of narrow ones, the gradient first."""
    for tokens in (1, 40):
        model = nn.Sequential(nn.Linear(12, 10)).double()
        model.loss = lambda batch, model=model: model(batch).square().sum((1, 2)).mean()
        batch = torch.randn(2, tokens, 12, dtype=torch.float64)
        direction = KFAC(model, damping=0.1, **EUCLIDEAN)
        direction(batch)
        expected = by_hand(direction, *rows_with_ones(model, batch, ["0"]), 0.1, 2, reduce=False)
        torch.testing.assert_close(written(model, "0"), expected, rtol=1e-10, atol=1e-12)


def test_the_models_own_samples_need_a_way_to_draw_targets() -> None:
    model, batch = example("convnet")
    with pytest.raises(TypeError, match=r"KFAC \(statistics=model.*needs Convnet\.sampled_loss\(\)"):
        KFAC(model, frame="euclidean")
    FOOF(model, frame="euclidean")(batch)
    model, batch = example("attention")
    steps = [KFAC(model, frame="euclidean", rest="gradient", statistics=s) for s in ("model", "data")]
    for step in steps:
        step(batch)
    torch.testing.assert_close(steps[0].moments[0].A, steps[1].moments[0].A)
    assert (steps[0].moments[0].G - steps[1].moments[0].G).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["attention", "convnet"])
def test_what_has_no_rule_and_the_relative_frame_are_refused_by_name(name: str) -> None:
    model, batch = example(name)
    with pytest.raises(TypeError, match=r"relative, unlike euclidean, needs layers .*; this model's .* has none"):
        KFAC(model, statistics="data", rest="gradient")(batch)
    if name == "attention":
        with pytest.raises(TypeError, match=r"KFAC has no rule for embedding \(Embedding\), norm \(LayerNorm\): set"):
            KFAC(model, **EUCLIDEAN)(batch)
    with pytest.raises(ValueError, match="rest must be one of refuse, gradient, got 'ignore'"):
        KFAC(model, rest="ignore", **EUCLIDEAN)
    with pytest.raises(ValueError, match="shared must be one of expand, reduce, got 'sum'"):
        KFAC(model, shared="sum", **EUCLIDEAN)


def test_directions_of_one_row_a_sample_refuse_more() -> None:
    model, batch = example("convnet")
    model.capture = Hooked(model, "natural gradient").capture
    with pytest.raises(TypeError, match=r"captured layer 0, 3×12, sees 18 rows a sample .* use KFAC, another of"):
        NaturalGradient(model, **EUCLIDEAN)(batch)


def test_the_quadratic_models_step_refuses_tied_layers() -> None:
    model = MLP([5, 5, 5, 5], activation="tanh", output="gaussian").double()
    model.layers[1] = model.layers[0]
    x = batch_of()
    with pytest.raises(TypeError, match="captured layers 0 and 1 are tied"):
        QuadraticStep(model, partial(KFAC, frame="euclidean"))((x, x))


def test_a_network_that_uses_a_layer_twice_is_trained() -> None:
    model = MLP([5, 5, 5, 5], activation="tanh", output="gaussian").double()
    model.layers[1] = model.layers[0]
    x = batch_of()
    KFAC(model, damping=1e20, **EUCLIDEAN)((x, x))
    found = [gradient * 1e20 for gradient in gradients(model)]
    Layerwise(model)((x, x))
    for got, expected in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", [KFAC, EKFAC, FOOF])
@pytest.mark.parametrize("name", ["attention", "convnet"])
def test_a_step_is_restored_bitwise(name: str, direction: Any) -> None:
    model, batch = example(name)
    options = {} if direction is FOOF else {"statistics": "data"}
    schedule = Schedule(statistics=1, inverse=3)
    make = partial(direction, frame="euclidean", rest="gradient", schedule=schedule, **options)
    workload = Workload(model, pair(model, make, partial(torch.optim.SGD, lr=1e-2)), [batch])
    workload.run(2)
    snapshot = workload.snapshot()
    found = []
    for _ in range(2):
        workload.restore(snapshot)
        workload.run(4)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *found))


def test_a_clipped_step_is_one_of_all_uses() -> None:
    """η² Dᵀ∇ over the captured layers is κ, by the written direction and autograd's gradient."""
    model, batch = example("convnet")
    step = KLClipped(model, partial(KFAC, **EUCLIDEAN), partial(torch.optim.SGD, lr=1.0), kappa=1e-6)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.loss(batch).backward()
    exact = gradients(model)
    KFAC(model, **EUCLIDEAN)(batch)
    whole = sum((one * other).sum() for one, other in zip(gradients(model), exact, strict=True))
    step(batch)
    moved = [old - parameter.detach() for old, parameter in zip(before, model.parameters(), strict=True)]
    change = sum((one * other).sum() for one, other in zip(moved, exact, strict=True))
    torch.testing.assert_close(change, whole * (1e-6 / whole).sqrt())


@pytest.mark.parametrize("direction", [KFAC, EKFAC])
def test_a_language_model_is_learned_by_heart(direction: Any) -> None:
    model, batch = example("attention")
    make = partial(direction, damping=0.01, schedule=Schedule(1, 1), **BY_HOOKS)
    step = pair(model, make, partial(torch.optim.SGD, lr=0.1))
    before = model.loss(batch).item()
    for _ in range(20):
        step(batch)
    assert model.loss(batch).item() < 0.5 * before


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit"), reason="torch 2.5 has it not")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own, as it looks
def test_a_compiled_step_captures_more_layers_than_the_compiler_makes_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by Dynamo, which by default gives up at eight versions of one function: the hook is none of its."""
    monkeypatch.setitem(counters, "frames", Counter())  # or no later test of this process could log a step
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9))).double()
        model.loss = lambda batch, model=model: model(batch).square().sum(1).mean()
        direction = FOOF(model, frame="euclidean")
        step = torch.compile(lambda x, direction=direction: direction(x), backend="eager") if compiled else direction
        for _ in range(2):
            step(batch_of(6, 3))
        found.append(gradients(model))
    assert all(map(torch.equal, *found))
