"""TNT, Shampoo, mini-block Fisher and momentum before the inverses, against dense matrices of gradients by autograd."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.models import Batch, Classifier, Flow
from stepscale.optimizers import FOOF, KFAC, TNT, MiniBlock, Schedule, Shampoo, TrustRegion, pair
from stepscale.optimizers.kronecker.moments import rows_are_cheaper
from stepscale.optimizers.kronecker.momentum import WithMomentum
from stepscale.optimizers.kronecker.tnt import normalised
from tests.conftest import batch_of, generic_flow
from tests.support.dense import dense_fisher, network

pytestmark = pytest.mark.numerical

LR, EPS, MU, DECAY, EVERY = 0.003, 0.3, 0.8, 0.7, 3
SCHEDULE = Schedule(statistics=1, inverse=EVERY, decay=DECAY)
METHODS: dict[str, Callable[..., WithMomentum]] = {
    "tnt": partial(TNT, statistics="data"),
    "shampoo": Shampoo,
    "shampoo sum": partial(Shampoo, accumulation="sum"),
    "mini block": MiniBlock,
}
Side = tuple[Tensor, Tensor]


def layers_of(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def dense_gradients(model: Any, batch: Batch, relative: bool) -> Iterator[Tensor]:
    """The mean gradient of each layer in its frame, by autograd through the whole loss: [dim_out, dim_in (+1)]."""
    layers = layers_of(model)
    parameters = [p for layer in layers for p in layer.parameters()]
    found = dict(zip(map(id, parameters), torch.autograd.grad(model.loss(batch), parameters), strict=True))
    for layer in layers:
        W, b = layer.weight.detach(), layer.bias
        S = found[id(layer.weight)] @ W.T if relative else found[id(layer.weight)]
        if b is None:
            yield S
            continue
        db = found[id(b)].unsqueeze(1)
        yield torch.cat([S + db @ b.detach().unsqueeze(0) if relative else S, db], dim=1)


def root(M: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(M + EPS * torch.eye(len(M), dtype=M.dtype))
    return vectors @ torch.diag(values**power) @ vectors.T


def sides(name: str, G: Tensor, A: Tensor) -> Side:
    """L and R of D = L m R."""
    out, width = len(G), len(A)
    if name == "tnt":
        c = (G.trace() / (out * width)).sqrt()
        return root(G / (c * width), -1), root(A / (c * out), -1)
    if name == "mini block":
        return torch.eye(out, dtype=G.dtype), root(A / out, -1)
    return root(G, -0.25), root(A, -0.25)


def dense_run(model: Any, batches: list[Batch], name: str, relative: bool) -> None:
    """Train by dense matrices: squares averaged, inverted every few steps, momentum before the inverses."""
    layers = layers_of(model)
    squares: list[Side] = []
    moved: list[Tensor] = []
    applied: list[Side] = []
    for step, batch in enumerate(batches):
        found = list(dense_gradients(model, batch, relative))
        keep = min(1 - 1 / (step + 1), DECAY)
        old, new = (1.0, 1.0) if name == "shampoo sum" else (keep, 1 - keep)
        fresh = [(S @ S.T, S.T @ S) for S in found]
        before = squares or [(0 * G, 0 * A) for G, A in fresh]
        squares = [(old * G + new * H, old * A + new * B) for (G, A), (H, B) in zip(before, fresh, strict=True)]
        moved = [MU * m + S for m, S in zip(moved or [0 * S for S in found], found, strict=True)]
        if step % EVERY == 0:
            applied = [sides(name, *square) for square in squares]
        for layer, m, (L, R) in zip(layers, moved, applied, strict=True):
            descend(layer, L @ m @ R, relative)


@torch.no_grad()
def descend(layer: nn.Linear, D: Tensor, relative: bool) -> None:
    W, b, d = layer.weight, layer.bias, layer.in_features
    if relative:
        if b is not None:
            b -= LR * (D[:, :d] @ b + D[:, d])
        W -= LR * D[:, :d] @ W
        return
    W -= LR * D[:, :d]
    if b is not None:
        b -= LR * D[:, d]


def assert_alike(model: nn.Module, other: nn.Module) -> None:
    for (name, one), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10, msg=lambda said, name=name: f"{name}: {said}")


def copied(make: Callable[[], nn.Module]) -> tuple[Any, Any]:
    one, other = make(), make()
    other.load_state_dict(one.state_dict())
    return one, other


def trained(model: nn.Module, batches: list[Batch], direction: Callable[..., WithMomentum], frame: str) -> Any:
    make = partial(direction, damping=EPS, momentum=MU, frame=frame, schedule=SCHEDULE)
    step = pair(model, make, partial(torch.optim.SGD, lr=LR))
    for batch in batches:
        step(batch)
    return step


@pytest.mark.parametrize("rows", [1, 3, 12])  # by Gram matrices of rows, and formed
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("which", ["tanh", "bernoulli", "classifier", "no bias"])
def test_a_network_is_trained_as_by_dense_matrices(which: str, name: str, rows: int) -> None:
    batches = [network(which, rows)[1] for _ in range(8)]
    model, other = copied(lambda: network(which, rows)[0])
    trained(model, batches, METHODS[name], "euclidean")
    dense_run(other, batches, name, relative=False)
    assert_alike(model, other)


@pytest.mark.parametrize("rows", [2, 12])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_flow_is_trained_as_by_dense_matrices(bias: bool, frame: str, name: str, rows: int) -> None:
    batches: list[Batch] = [batch_of(rows) / 3 for _ in range(8)]
    model, other = copied(lambda: generic_flow() if bias else Flow(5, 2, bias=False).double())
    trained(model, batches, METHODS[name], frame)
    dense_run(other, batches, name, relative=frame == "relative")
    assert_alike(model, other)
    assert rows_are_cheaper(rows, 5, 6) is (rows == 2), "both ways are looked at"


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("rank", [None, 2])
def test_momentum_stands_before_kfac_s_inverses(frame: str, rank: int | None) -> None:
    """Written by factors, it is the preconditioned sum of what the same inverses are applied to without momentum."""
    batches = [batch_of(3) / 3 for _ in range(8)]
    model, other = copied(generic_flow)
    schedule = Schedule(1, EVERY, DECAY)
    make = partial(KFAC, damping=EPS, frame=frame, statistics="data", schedule=schedule, rank=rank)
    step = pair(model, partial(make, momentum=MU), partial(torch.optim.SGD, lr=LR))
    plain, moved = make(other), [0.0, 0.0, 0.0]
    for batch in batches:
        torch.manual_seed(0)
        step(batch)
        gradients = list(dense_gradients(other, batch, frame == "relative"))
        torch.manual_seed(0)
        plain(batch)  # for its inverses
        moved = [MU * m + S for m, S in zip(moved, gradients, strict=True)]
        for layer, m, applied in zip(layers_of(other), moved, plain.applied, strict=True):
            sides = [side if isinstance(side, Tensor) else side.dense() for side in (applied.left, applied.right)]
            descend(layer, sides[0] @ m @ sides[1], frame == "relative")
            layer.weight.grad = layer.bias.grad = None
    assert_alike(model, other)


def test_sampled_squares_are_times_the_batch_and_data_s_are_not() -> None:
    """E‖S‖² of the mean of B sampled gradients is tr F / B, with F the true Fisher matrix, formed by autograd."""
    model, batch = network("tanh", rows=4)
    totals = []
    for seed in range(4_000):
        torch.manual_seed(seed)
        tnt = TNT(model, frame="euclidean", schedule=Schedule(1, 1_000))
        tnt.observe(tnt.sampler.capture_samples(model.capture(batch)))  # type: ignore[union-attr]
        totals.append(sum(moments.A.trace() for moments in tnt.moments))
    found = torch.stack(totals)
    exact = dense_fisher(model, batch).trace()
    assert abs(found.mean() - exact) < 4 * found.std() / len(found) ** 0.5
    assert found.std() / len(found) ** 0.5 < 0.05 * exact, "it would see a factor of the batch"


def test_tnt_s_factors_have_the_trace_of_the_squares() -> None:
    model, batch = network("tanh")
    tnt = TNT(model, frame="euclidean", statistics="data", damping=0.0, schedule=Schedule(1, 1))
    tnt.observe(model.capture(batch))
    A, G = tnt.moments[0].both
    U, V = normalised(A, G)
    torch.testing.assert_close(U.trace() * V.trace(), G.trace())
    torch.testing.assert_close(U.trace() / len(U), V.trace() / len(V))


def test_strong_damping_leaves_the_gradient() -> None:
    model, other = copied(lambda: network("tanh")[0])
    batch = network("tanh")[1]
    strong = 1e8
    for name, scale in (("tnt", strong**2), ("shampoo", strong**0.5), ("mini block", strong)):
        METHODS[name](model, damping=strong, momentum=0.0, frame="euclidean", schedule=SCHEDULE)(batch)
        other.zero_grad()
        other.loss(batch).backward()
        for one, same in zip(model.parameters(), other.parameters(), strict=True):
            assert one.grad is not None and same.grad is not None
            torch.testing.assert_close(one.grad * scale, same.grad, rtol=1e-6, atol=1e-9)


def test_a_layer_without_a_gradient_has_finite_factors() -> None:
    model, batch = network("tanh")
    with torch.no_grad():
        model.layers[-1].weight.zero_()  # which lets no gradient through
    tnt = TNT(model, frame="euclidean", statistics="data", schedule=SCHEDULE)
    tnt(batch)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_inverses_are_made_at_every_update_of_the_factors_at_first() -> None:
    model, batch = network("tanh")
    tnt = TNT(model, frame="euclidean", schedule=Schedule(statistics=2, inverse=10, eager=5))
    made = []
    for step in range(12):
        before = tnt.applied
        tnt(batch)
        made += [step] * (tnt.applied is not before)
    assert made == [0, 2, 4, 10]


WITH_MOMENTUM: dict[str, Callable[..., WithMomentum]] = {
    **METHODS,
    "kfac": partial(KFAC, statistics="data"),
    "foof": FOOF,
}


@pytest.mark.parametrize("method", WITH_MOMENTUM)
@pytest.mark.parametrize("name", ["tanh", "classifier"])
def test_the_trust_region_shortens_step_and_momentum_alike(name: str, method: str) -> None:
    """η² vᵀF v ≤ κ with F formed by autograd; the momentum goes on from the shortened one."""
    kappa = 1e-6
    (model, batch), (other, _) = network(name), network(name)
    other.load_state_dict(model.state_dict())
    make = partial(WITH_MOMENTUM[method], damping=EPS, momentum=MU, frame="euclidean", schedule=SCHEDULE)
    step = TrustRegion(model, make, partial(torch.optim.SGD, lr=LR), kappa=kappa)
    free = make(other)
    shortened = 0
    for _ in range(6):
        free(batch)
        v = torch.cat([p.grad.flatten() for p in other.parameters()])  # type: ignore[union-attr]
        change = LR**2 * v @ dense_fisher(other, batch) @ v
        share = min(1.0, (kappa / change.item()) ** 0.5)
        shortened += share < 1
        with torch.no_grad():
            for p in other.parameters():
                p -= LR * share * p.grad  # type: ignore[operator]
        free.shrink(torch.tensor(share, dtype=torch.float64))
        step(batch)
        assert_alike(model, other)
    assert shortened


@pytest.mark.parametrize("method", [TNT, Shampoo, MiniBlock, partial(KFAC, momentum=0.9)])
def test_between_inversions_no_product_is_cubic(method: Callable[..., WithMomentum]) -> None:
    """Counted, of 16 rows; the dense form of momentum between two matrices is two products of d³ a layer."""
    flops = []
    for dim in (128, 256):
        direction = method(Classifier(dim, 3, classes=10), frame="euclidean", schedule=Schedule(1, 20))
        batch = torch.randn(16, dim), torch.randint(0, 10, (16,))
        direction(batch)
        with OperationLog() as log:
            direction(batch)
        flops.append(log.flops)
    assert math.log2(flops[1] / flops[0]) < 2.05


def test_state_goes_on_where_it_was() -> None:
    batches = [batch_of(3) / 3 for _ in range(10)]
    model, other = copied(generic_flow)
    make = partial(TNT, statistics="data", damping=EPS, schedule=SCHEDULE)
    step, again = (pair(m, make, partial(torch.optim.SGD, lr=LR)) for m in (model, other))
    for batch in batches[:4]:
        step(batch)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(step.state_dict())
    for batch in batches[4:]:
        step(batch)
        again(batch)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


def test_what_makes_no_sense_is_refused() -> None:
    model = generic_flow()
    with pytest.raises(ValueError, match="momentum must lie in"):
        TNT(model, momentum=1.0)
    with pytest.raises(ValueError, match=r"log_det=stale would save nothing.*momentum=0"):
        KFAC(model, momentum=0.9, log_det="stale")
    with pytest.raises(ValueError, match="damping must be positive"):
        Shampoo(model, damping=0.0)
    with pytest.raises(TypeError, match="KFAC owns no momentum"):
        TrustRegion(model, KFAC, partial(torch.optim.SGD, lr=LR))
    with pytest.raises(ValueError, match=r"SGD has a momentum of its own.*optimizer\.update\.momentum=0"):
        TrustRegion(model, TNT, partial(torch.optim.SGD, lr=LR, momentum=0.9))
    with pytest.raises(ValueError, match="kappa must be positive"):
        TrustRegion(model, TNT, partial(torch.optim.SGD, lr=LR), kappa=0)
