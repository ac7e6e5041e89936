"""TNT, Shampoo, mini-block Fisher and momentum before the inverses, against dense matrices of gradients by autograd."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.records import tables
from stepscale.models import Batch, Flow, LogDet
from stepscale.optimizers import EKFAC, FOOF, KFAC, TNT, MiniBlock, Schedule, Shampoo, TrustRegion, pair
from stepscale.optimizers.kronecker.mini_block import refuse_large
from stepscale.optimizers.kronecker.moments import rows_are_cheaper
from stepscale.optimizers.kronecker.momentum import WithMomentum
from stepscale.optimizers.kronecker.tnt import normalised
from tests.conftest import batch_of, generic_flow
from tests.support.dense import (
    assert_alike,
    dense_fisher,
    homogeneous,
    in_parameters,
    layers_of,
    mean_gradients,
    move,
    network,
    twins,
    written,
)
from tests.support.jobs import job, logged

pytestmark = pytest.mark.numerical

LR, EPS, MU, DECAY, EVERY = 0.003, 0.3, 0.8, 0.7, 3
SCHEDULE = Schedule(statistics=1, inverse=EVERY, decay=DECAY)
METHODS: dict[str, Callable[..., WithMomentum]] = {
    "tnt": partial(TNT, statistics="data"),
    "shampoo": Shampoo,
    "shampoo sum": partial(Shampoo, accumulation="sum"),
    "mini block": MiniBlock,
    "mini block rows": partial(MiniBlock, blocks="rows"),
}
Side = tuple[Tensor, Tensor]
Map = Callable[[Tensor], Tensor]


def root(M: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(M + EPS * torch.eye(len(M), dtype=M.dtype))
    return vectors @ torch.diag(values**power) @ vectors.T


def squares_of(name: str, S: Tensor) -> Side:
    """Of both sides; by rows a block for each row, one after the other."""
    return S @ S.T, torch.stack([torch.outer(row, row) for row in S]) if name == "mini block rows" else S.T @ S


def preconditioner(name: str, G: Tensor, A: Tensor) -> Map:
    """D of m."""
    if name == "mini block rows":
        return lambda m: torch.stack([root(M, -1) @ row for M, row in zip(A, m, strict=True)])
    L, R = sides(name, G, A)
    return lambda m: L @ m @ R


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
    applied: list[Map] = []
    for step, batch in enumerate(batches):
        found = list(mean_gradients(model, batch, relative))
        keep = min(1 - 1 / (step + 1), DECAY)
        old, new = (1.0, 1.0) if name == "shampoo sum" else (keep, 1 - keep)
        fresh = [squares_of(name, S) for S in found]
        before = squares or [(0 * G, 0 * A) for G, A in fresh]
        squares = [(old * G + new * H, old * A + new * B) for (G, A), (H, B) in zip(before, fresh, strict=True)]
        moved = [MU * m + S for m, S in zip(moved or [0 * S for S in found], found, strict=True)]
        if step % EVERY == 0:
            applied = [preconditioner(name, *square) for square in squares]
        for layer, m, P in zip(layers, moved, applied, strict=True):
            move(layer, in_parameters(layer, P(m), relative), LR)


def stale_run(model: Any, batches: list[Batch], name: str, relative: bool) -> None:
    """The same without momentum, the log-determinant's part in the parameters as it was at the last inversion."""
    layers = layers_of(model)
    squares: list[Side] = []
    applied: list[Map] = []
    for step, batch in enumerate(batches):
        found = list(mean_gradients(model, batch, relative))
        keep = min(1 - 1 / (step + 1), DECAY)
        old, new = (1.0, 1.0) if name == "shampoo sum" else (keep, 1 - keep)
        fresh = [squares_of(name, S) for S in found]
        before = squares or [(0 * G, 0 * A) for G, A in fresh]
        squares = [(old * G + new * H, old * A + new * B) for (G, A), (H, B) in zip(before, fresh, strict=True)]
        parts = [log_det_part(layer, S, relative) for layer, S in zip(layers, found, strict=True)]
        if step % EVERY == 0:
            applied = [preconditioner(name, *square) for square in squares]
            kept = [in_parameters(layer, P(N), relative) for layer, P, N in zip(layers, applied, parts, strict=True)]
        for layer, S, N, P, less in zip(layers, found, parts, applied, kept, strict=True):
            move(layer, in_parameters(layer, P(S + N), relative) - less, LR)


def log_det_part(layer: nn.Linear, S: Tensor, relative: bool) -> Tensor:
    """[N, 0]."""
    N = torch.zeros_like(S)
    N[:, : len(S)] = torch.eye(len(S)) if relative else torch.linalg.inv(layer.weight.detach()).T
    return N


def trained(
    model: nn.Module, batches: list[Batch], direction: Callable[..., WithMomentum], frame: str, momentum: float = MU
) -> Any:
    make = partial(direction, damping=EPS, momentum=momentum, frame=frame, schedule=SCHEDULE)
    step = pair(model, make, partial(torch.optim.SGD, lr=LR))
    for batch in batches:
        step(batch)
    return step


@pytest.mark.parametrize("rows", [1, 3, 12])  # by Gram matrices of rows, and formed
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("which", ["tanh", "bernoulli", "classifier", "no bias"])
def test_a_network_is_trained_as_by_dense_matrices(which: str, name: str, rows: int) -> None:
    batches = [network(which, rows)[1] for _ in range(8)]
    model, other = twins(lambda: network(which, rows)[0])
    trained(model, batches, METHODS[name], "euclidean")
    dense_run(other, batches, name, relative=False)
    assert_alike(model, other)


@pytest.mark.parametrize("rows", [2, 12])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_flow_is_trained_as_by_dense_matrices(bias: bool, frame: str, name: str, rows: int) -> None:
    batches: list[Batch] = [batch_of(rows) / 3 for _ in range(8)]
    model, other = twins(lambda: generic_flow() if bias else Flow(5, 2, bias=False).double())
    trained(model, batches, METHODS[name], frame)
    dense_run(other, batches, name, relative=frame == "relative")
    assert_alike(model, other)
    assert rows_are_cheaper(rows, 5, 6) is (rows == 2), "both ways are looked at"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mini block rows"])
@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_a_stale_log_determinant_is_that_of_the_last_inversion(frame: str, name: str) -> None:
    batches: list[Batch] = [batch_of(3) / 3 for _ in range(8)]
    (model, other), (exact, _) = twins(generic_flow), twins(generic_flow)
    exact.load_state_dict(model.state_dict())
    step = trained(model, batches, partial(METHODS[name], log_det="stale"), frame, momentum=0.0)
    stale_run(other, batches, name, relative=frame == "relative")
    assert_alike(model, other)
    assert step.facts.log_det is LogDet.STALE
    trained(exact, batches, METHODS[name], frame, momentum=0.0)
    assert not torch.allclose(exact.layers[0].weight, model.layers[0].weight, rtol=0, atol=1e-6), "it shows"


@pytest.mark.parametrize("method", [partial(TNT, statistics="data"), Shampoo, MiniBlock])
def test_with_a_stale_log_determinant_no_product_between_inversions_is_cubic(
    method: Callable[..., WithMomentum],
) -> None:
    """Counted in the relative frame; targets drawn from a flow cost an LU a layer."""
    flops = []
    for dim in (256, 512):
        direction = method(Flow(dim, 2), momentum=0.0, log_det="stale", schedule=Schedule(1, 20))
        batch = torch.randn(16, dim)
        direction(batch)
        with OperationLog() as log:
            direction(batch)
        flops.append(log.flops)
    assert math.log2(flops[1] / flops[0]) < 2.05


@pytest.mark.parametrize("optimizer", ["tnt", "shampoo", "mini_block"])
def test_a_record_says_that_the_log_determinant_is_stale(tmp_path: Path, optimizer: str) -> None:
    words = ["optimizer.direction.log_det=stale", "optimizer.direction.momentum=0"]
    row = tables.row(measure_cell(logged(job(tmp_path, *words, optimizer=optimizer))))
    assert row["log_det"] == "stale" and row["cosine"] < 1


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("rank", [None, 2])
def test_momentum_stands_before_kfac_s_inverses(frame: str, rank: int | None) -> None:
    """Written by factors, it is the preconditioned sum of what the same inverses are applied to without momentum."""
    batches = [batch_of(3) / 3 for _ in range(8)]
    model, other = twins(generic_flow)
    schedule = Schedule(1, EVERY, DECAY)
    make = partial(KFAC, damping=EPS, frame=frame, statistics="data", schedule=schedule, rank=rank)
    step = pair(model, partial(make, momentum=MU), partial(torch.optim.SGD, lr=LR))
    plain, moved = make(other), [0.0, 0.0, 0.0]
    for batch in batches:
        torch.manual_seed(0)
        step(batch)
        gradients = list(mean_gradients(other, batch, frame == "relative"))
        torch.manual_seed(0)
        plain(batch)  # for its inverses
        moved = [MU * m + S for m, S in zip(moved, gradients, strict=True)]
        for layer, m, applied in zip(layers_of(other), moved, plain.applied, strict=True):
            sides = [side if isinstance(side, Tensor) else side.dense() for side in (applied.left, applied.right)]
            move(layer, in_parameters(layer, sides[0] @ m @ sides[1], frame == "relative"), LR)
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
    model, other = twins(lambda: network("tanh")[0])
    batch = network("tanh")[1]
    strong = 1e8
    scales = {
        "tnt": strong**2,
        "shampoo": strong**0.5,
        "shampoo sum": strong**0.5,
        "mini block": strong,
        "mini block rows": strong,
    }
    for name, scale in scales.items():
        METHODS[name](model, damping=strong, momentum=0.0, frame="euclidean", schedule=SCHEDULE)(batch)
        other.zero_grad()
        other.loss(batch).backward()
        for one, same in zip(model.parameters(), other.parameters(), strict=True):
            assert one.grad is not None and same.grad is not None
            torch.testing.assert_close(one.grad * scale, same.grad, rtol=1e-6, atol=1e-9)


def of_one_row(name: str, g: Tensor, x: Tensor, count: int) -> Tensor:
    """What a gradient g xᵀ is divided by, whose one singular value is |g| |x|; ``count`` such have been met."""
    out, width, square = len(g), len(x), (g @ g) * (x @ x)
    if name == "tnt":
        c = (square / (out * width)).sqrt()
        return (square / (c * width) + EPS) * (square / (c * out) + EPS)
    if name == "mini block":
        return square / out + EPS
    if name == "mini block rows":
        return g.square().unsqueeze(1) * (x @ x) + EPS
    return (square * (count if name == "shampoo sum" else 1) + EPS).sqrt()


@pytest.mark.parametrize("name", METHODS)
def test_of_one_row_met_again_and_again_it_is_a_quotient(name: str) -> None:
    """B = 1 and constant gradients: averages stay, a sum grows, and momentum comes to 1/(1 − μ) of what is applied."""
    model, batch = network("tanh", rows=1)
    direction = METHODS[name](model, damping=EPS, momentum=MU, frame="euclidean", schedule=SCHEDULE)
    for step in range(2 * EVERY + 2):
        direction(batch)
        made = step // EVERY * EVERY + 1  # as many had been met when it was inverted
        whole = (1 - MU ** (step + 1)) / (1 - MU)
        for io in model.capture(batch):
            g, x = io.delta[0], homogeneous(io.a)[0]
            expected = whole * torch.outer(g, x) / of_one_row(name, g, x, made)
            torch.testing.assert_close(written(io), expected, rtol=1e-10, atol=1e-10)


def test_blocks_that_do_not_fit_are_refused_in_words() -> None:
    said = r"blocks=rows takes 4\.3 GB .* 1024 rows of 1025, .* limit_gb=4: use blocks=shared"
    with pytest.raises(MemoryError, match=said):
        refuse_large(torch.zeros(1).expand(1024, 1025), limit_gb=4)
    model, batch = network("tanh")
    with pytest.raises(MemoryError, match=r"a layer of 4 rows of 6, .* limit_gb=1e-06: use"):
        MiniBlock(model, blocks="rows", frame="euclidean", limit_gb=1e-6)(batch)  # 4 · 6² numbers are 1.152e-6 GB
    MiniBlock(model, blocks="rows", frame="euclidean", limit_gb=1.2e-6)(batch)
    with pytest.raises(ValueError, match=r"blocks=rows has a matrix for each row.*set form=dense"):
        MiniBlock(model, blocks="rows", form="factored")


def test_the_published_form_is_that_of_pytorch_optimizer() -> None:
    """Of matrices alone, as that has a root of a bias's own; with sums, no momentum and roots made in every step.

    Its factors begin as ε I, to which squares are added: the same ε here is added before the root.
    """
    theirs = pytest.importorskip("pytorch_optimizer", reason="of the extra optimizers")
    model, other = twins(lambda: network("no bias")[0])
    published = {"accumulation": "sum", "momentum": 0.0, "schedule": Schedule(statistics=1, inverse=1)}
    direction = partial(Shampoo, damping=1e-3, frame="euclidean", **published)
    step = pair(model, direction, partial(torch.optim.SGD, lr=LR))
    same = theirs.Shampoo(other.parameters(), lr=LR, momentum=0.0, preconditioning_compute_steps=1, matrix_eps=1e-3)
    for _ in range(20):
        batch = network("no bias")[1]
        step(batch)
        other.zero_grad()
        other.loss(batch).backward()
        same.step()
    assert_alike(model, other)


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


def test_state_goes_on_where_it_was() -> None:
    batches = [batch_of(3) / 3 for _ in range(10)]
    model, other = twins(generic_flow)
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


def test_rows_that_products_are_added_to_begin_every_64_bytes_and_do_when_restored(tmp_path: Path) -> None:
    model, batch = network("tanh")
    tnt, again = (TNT(model, frame="euclidean", statistics="data", schedule=SCHEDULE) for _ in range(2))
    tnt(batch)
    torch.save(tnt.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    kept = [*again.moments, *again.velocities]
    assert kept and all(
        M.stride(0) * M.element_size() % 64 == 0 and M.stride(1) == 1 for part in kept for M in vars(part).values()
    )


def test_what_makes_no_sense_is_refused() -> None:
    model = generic_flow()
    with pytest.raises(ValueError, match="momentum must lie in"):
        TNT(model, momentum=1.0)
    with pytest.raises(ValueError, match=r"log_det=stale would save nothing.*momentum=0"):
        KFAC(model, momentum=0.9, log_det="stale")
    with pytest.raises(ValueError, match=r"form=dense multiplies whole gradients.*form=factored"):
        TNT(model, form="dense", momentum=0.0, log_det="stale")
    with pytest.raises(ValueError, match="form must be one of factored, dense, got 'whole'"):
        Shampoo(model, form="whole")
    with pytest.raises(ValueError, match="damping must be positive"):
        Shampoo(model, damping=0.0)
    with pytest.raises(TypeError, match="KFAC owns no momentum"):
        TrustRegion(model, KFAC, partial(torch.optim.SGD, lr=LR))
    with pytest.raises(ValueError, match=r"SGD has a momentum of its own.*take torch\.optim\.SGD"):
        TrustRegion(model, TNT, partial(torch.optim.SGD, lr=LR, momentum=0.9))
    with pytest.raises(ValueError, match="Adam has a momentum of its own"):
        TrustRegion(model, TNT, partial(torch.optim.Adam, lr=LR))
    groups = [{"params": [layer.weight, layer.bias], "lr": LR * (k + 1)} for k, layer in enumerate(model.layers)]
    with pytest.raises(ValueError, match=r"TrustRegion goes by one learning rate, .* have 0\.003, 0\.006, 0\.009"):
        TrustRegion(model, TNT, lambda _: torch.optim.SGD(groups))(batch_of())
    with pytest.raises(ValueError, match=r"EKFAC takes .* log_det=exact"):
        EKFAC(model, log_det="stale")
    with pytest.raises(ValueError, match="kappa must be positive"):
        TrustRegion(model, TNT, partial(torch.optim.SGD, lr=LR), kappa=0)
