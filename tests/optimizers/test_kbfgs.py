"""K-BFGS and K-BFGS(L) against dense matrices, with all that a layer sees by hooks and autograd."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.models import Batch, Classifier, Flow
from stepscale.optimizers import KBFGS, KLClipped, QuadraticStep, TrustRegion, pair
from tests.conftest import batch_of, generic_flow
from tests.support.dense import (
    assert_alike,
    bfgs_by_matrices,
    dense_fisher,
    in_parameters,
    layers_of,
    move,
    network,
    twins,
)

pytestmark = pytest.mark.numerical

LR, LAMBDA, MU, DECAY = 0.01, 0.3, 0.8, 0.7
ROOT = LAMBDA**0.5
OPTIONS = {"damping": LAMBDA, "momentum": MU, "decay": DECAY}
Pair = tuple[Tensor, Tensor]


class Seen(NamedTuple):
    """Of one layer and a batch, by hooks and autograd."""

    S: Tensor  # mean gradient in the frame, of the whole loss, [dim_out, dim_in (+1)]
    x: Tensor  # inputs in the frame, [batch, dim_in (+1)]
    y: Tensor  # mean output
    delta: Tensor  # mean gradient at it, without log-determinants


def looked_at(model: Any, batch: Batch, relative: bool) -> Iterator[Seen]:
    layers, inputs, outputs = layers_of(model), [], []

    def record(module: nn.Module, given: tuple[Tensor], y: Tensor) -> None:
        inputs.append(given[0].detach())
        outputs.append(y)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    loss = -model.log_prob_without_det(batch).mean() if isinstance(model, Flow) else model.loss(batch)
    for hook in hooks:
        hook.remove()
    deltas = torch.autograd.grad(loss, outputs)
    whole = model.loss(batch)
    for layer, a, y, delta in zip(layers, inputs, outputs, deltas, strict=True):
        W, b = layer.weight.detach(), layer.bias
        [S] = torch.autograd.grad(whole, [layer.weight], retain_graph=True)
        x = y.detach() if relative else a
        S = S @ W.T if relative else S
        if b is not None:
            [db] = torch.autograd.grad(whole, [b], retain_graph=True)
            S = torch.cat([S + torch.outer(db, b.detach()) if relative else S, db.unsqueeze(1)], dim=1)
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        yield Seen(S, x, y.detach().mean(0), delta.sum(0))  # of a mean loss, so that a sum is the mean


def damped(H: Tensor, s: Tensor, y: Tensor, mu1: float = 0.2, mu2: float = ROOT) -> Pair:
    Hy = H @ y
    if s @ y < mu1 * y @ Hy:
        theta = (1 - mu1) * (y @ Hy) / (y @ Hy - s @ y)
        s = theta * s + (1 - theta) * Hy
    if s @ y < mu2 * s @ s:
        theta = (1 - mu2) * (s @ s) / (s @ s - s @ y)
        y = theta * y + (1 - theta) * s
    return s, y


class DenseLayer:
    """All that K-BFGS keeps of a layer, as matrices."""

    def __init__(self, seen: Seen, pairs: int | None) -> None:
        self.A, self.m, self.steps, self.kept, self.last = 0 * seen.x.T @ seen.x, 0 * seen.S, 0, pairs, list[Pair]()
        self.one, self.Hg = torch.eye(len(seen.y), dtype=seen.y.dtype), torch.eye(len(seen.y), dtype=seen.y.dtype)
        self.Ha, self.s, self.y = self.A, 0 * seen.y, 0 * seen.y

    def direction(self, seen: Seen) -> Tensor:
        self.steps += 1
        keep = min(1 - 1 / self.steps, DECAY)
        self.A = keep * self.A + (1 - keep) * seen.x.T @ seen.x / len(seen.x)
        if self.steps == 1:
            self.Ha = torch.linalg.inv(self.A + ROOT * torch.eye(len(self.A), dtype=self.A.dtype))
        self.m = MU * self.m + seen.S
        return self.Hg @ self.m @ self.Ha

    def learn(self, seen: Seen, then: Seen) -> None:
        self.s = DECAY * self.s + (1 - DECAY) * (then.y - seen.y)
        self.y = DECAY * self.y + (1 - DECAY) * (then.delta - seen.delta)
        found = damped(self.Hg, self.s, self.y)
        if self.kept is None:
            self.Hg = bfgs_by_matrices(self.Hg, *found)
        else:
            self.last = [*self.last, found][-self.kept :]
            self.Hg = self.one
            for there in self.last:
                self.Hg = bfgs_by_matrices(self.Hg, *there)
        s = self.Ha @ seen.x.mean(0)
        self.Ha = bfgs_by_matrices(self.Ha, s, self.A @ s + ROOT * s)


def dense_run(model: Any, batches: list[Batch], relative: bool, pairs: int | None = None) -> list[DenseLayer]:
    kept: list[DenseLayer] = []
    for batch in batches:
        seen = list(looked_at(model, batch, relative))
        kept = kept or [DenseLayer(one, pairs) for one in seen]
        for layer, own, one in zip(layers_of(model), kept, seen, strict=True):
            move(layer, in_parameters(layer, own.direction(one), relative), LR)
        for own, one, then in zip(kept, seen, looked_at(model, batch, relative), strict=True):
            own.learn(one, then)
    return kept


def stepping(model: nn.Module, frame: str = "euclidean", lr: float = LR, **options: Any) -> Any:
    return pair(model, partial(KBFGS, frame=frame, **{**OPTIONS, **options}), partial(torch.optim.SGD, lr=lr))


@pytest.mark.parametrize("rows", [2, 12])  # v by changes, and made anew
@pytest.mark.parametrize("pairs", [None, 3, 20])
@pytest.mark.parametrize("which", ["tanh", "relu", "bernoulli", "classifier", "no bias"])
def test_a_network_is_trained_as_by_dense_matrices(which: str, pairs: int | None, rows: int) -> None:
    batches = [network(which, rows)[1] for _ in range(10)]
    model, other = twins(lambda: network(which, rows)[0])
    step = stepping(model, pairs=pairs)
    for batch in batches:
        step(batch)
    kept = dense_run(other, batches, relative=False, pairs=pairs)
    assert_alike(model, other)
    for own, applied in zip(kept, step.direction.applied, strict=True):
        torch.testing.assert_close(applied.right, own.Ha)


@pytest.mark.parametrize("rows", [2, 12])
@pytest.mark.parametrize("pairs", [None, 3, 20])
@pytest.mark.parametrize("frame", ["relative", "euclidean"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_flow_is_trained_as_by_dense_matrices(bias: bool, frame: str, pairs: int | None, rows: int) -> None:
    batches: list[Batch] = [batch_of(rows) / 3 for _ in range(10)]
    model, other = twins(lambda: generic_flow() if bias else Flow(5, 2, bias=False).double())
    step = stepping(model, frame, pairs=pairs)
    for batch in batches:
        step(batch)
    dense_run(other, batches, relative=frame == "relative", pairs=pairs)
    assert_alike(model, other)


@pytest.mark.parametrize("which", ["classifier", "relative flow"])
def test_momentum_by_changes_of_rank_two_is_the_dense_one_over_many_steps(which: str) -> None:
    """Of few rows, so that v is never made anew of m."""
    relative = which == "relative flow"
    step = stepping(generic_flow() if relative else network(which)[0], "relative" if relative else "euclidean")
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for _ in range(200):
        step(batch_of(2) / 3 if relative else network(which, 2)[1])
        for velocity, applied in zip(step.direction.velocities, step.direction.applied, strict=True):
            close(velocity.v, applied.left @ velocity.m @ applied.right)
            if relative:
                close(applied.within, applied.left @ applied.right[:5])


def test_a_pair_that_needs_no_damping_is_fulfilled() -> None:
    """H_g y = s of the averages, and H_a (A + √λ I) s = s of s = H_a x̄, after every step."""
    model, batch = network("bernoulli")
    step = stepping(model)
    step(batch)
    direction, plain = step.direction, 0
    for _ in range(30):
        before = [(applied.left.clone(), applied.right.clone()) for applied in direction.applied]
        _, batch = network("bernoulli")
        inputs = [seen.x.mean(0) for seen in looked_at(model, batch, relative=False)]
        step(batch)
        for place, (Hg, Ha) in enumerate(before):
            applied, s, y = direction.applied[place], direction.outputs[place].s, direction.outputs[place].y
            if s @ y >= 0.2 * (y @ Hg @ y) and s @ y >= ROOT * (s @ s):
                plain += 1
                torch.testing.assert_close(applied.left @ y, s, rtol=1e-9, atol=1e-14)
            a = Ha @ inputs[place]
            torch.testing.assert_close(
                applied.right @ (direction.moments[place].A @ a + ROOT * a), a, rtol=1e-9, atol=1e-14
            )
    assert plain


class QuadraticLayer(nn.Linear):
    """Whose loss is quadratic in its outputs, with Q for a Hessian matrix."""

    def __init__(self, Q: Tensor) -> None:
        super().__init__(4, len(Q), bias=False, dtype=torch.float64)
        self.Q = Q

    def loss(self, batch: Tensor) -> Tensor:
        y = self(batch)
        return 0.5 * ((y @ self.Q) * y).sum(1).mean()


class Wandering(torch.optim.SGD):
    """Goes anywhere."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("pairs", [None, 40])
def test_both_matrices_tend_to_inverses(pairs: int | None) -> None:
    """H_g to the Hessian matrix's of the outputs; H_a, started elsewhere, to that of A + √λ I, which all batches share.

    Signs of rows change their mean, which has to vary, and not their A.
    """
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    Q = Q @ torch.diag(torch.tensor([0.8, 1.5, 3.0], dtype=torch.float64)) @ Q.T
    model, x = QuadraticLayer(Q), batch_of(20, 4)
    step = pair(
        model, partial(KBFGS, frame="euclidean", damping=LAMBDA, decay=0.0, pairs=pairs), partial(Wandering, lr=0.1)
    )
    step(x)
    [applied] = step.direction.applied
    applied.right.copy_(torch.eye(4))
    for _ in range(150):
        step(x * (2.0 * torch.randint(0, 2, (20, 1)) - 1))
    one = torch.eye(4, dtype=torch.float64)
    limited = step.direction.outputs[0].limited
    found = applied.left if limited is None else limited.times(one[:3, :3])
    torch.testing.assert_close(found, torch.linalg.inv(Q), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(applied.right, torch.linalg.inv(x.T @ x / 20 + ROOT * one), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pairs", [None, 100])
def test_no_step_is_cubic_the_first_least_of_all(pairs: int | None) -> None:
    """Counted, of 16 rows, with the second capture: as published a step has two products of d³ a layer."""
    flops = []
    for dim in (256, 512):
        step = stepping(Classifier(dim, 3, classes=10), pairs=pairs)
        batch, found = (torch.randn(16, dim), torch.randint(0, 10, (16,))), []
        for _ in range(4):
            with OperationLog() as log:
                step(batch)
            assert not log.uncounted
            found.append(log.flops)
        flops.append(found)
    assert all(math.log2(large / small) <= 2.05 for small, large in zip(*flops, strict=True))


@pytest.mark.parametrize("pairs", [None, 3])
@pytest.mark.parametrize("which", ["tanh", "classifier"])
def test_the_trust_region_shortens_step_and_momentum_alike(which: str, pairs: int | None) -> None:
    """η² vᵀF v ≤ κ with F formed by autograd; H_g learns of the shortened step."""
    kappa, batches = 1e-4, [network(which)[1] for _ in range(8)]
    model, other = twins(lambda: network(which)[0])
    direction = partial(KBFGS, frame="euclidean", pairs=pairs, **OPTIONS)
    step = TrustRegion(model, direction, partial(torch.optim.SGD, lr=LR), kappa=kappa)
    kept: list[DenseLayer] = []
    shortened = 0
    for batch in batches:
        step(batch)
        seen = list(looked_at(other, batch, relative=False))
        kept = kept or [DenseLayer(one, pairs) for one in seen]
        moves = [own.direction(one) for own, one in zip(kept, seen, strict=True)]
        v = torch.cat([part.flatten() for D in moves for part in (D[:, :-1], D[:, -1])])
        share = min(1.0, (kappa / (LR**2 * v @ dense_fisher(other, batch) @ v).item()) ** 0.5)
        shortened += share < 1
        for layer, own, D in zip(layers_of(other), kept, moves, strict=True):
            own.m = share * own.m
            move(layer, share * D, LR)
        for own, one, then in zip(kept, seen, looked_at(other, batch, relative=False), strict=True):
            own.learn(one, then)
        assert_alike(model, other)
    assert shortened


class Tokens(nn.Linear):
    """One layer on several rows of a sample, and a loss that is a mean over samples of sums over rows."""

    def loss(self, batch: Tensor) -> Tensor:
        return torch.logsumexp(self(batch), dim=-1).sum(1).mean()


@pytest.mark.parametrize("shared", ["expand", "reduce"])
def test_rows_that_share_a_weight_have_mean_outputs_and_gradients_summed(shared: str) -> None:
    """With means of inputs and outputs over rows, what is learned is the Hessian matrix of a sample's sum of losses."""
    model, other = twins(lambda: Tokens(4, 3).double())
    batches = [torch.randn(5, 6, 4, dtype=torch.float64) for _ in range(6)]
    step = stepping(model, shared=shared)
    kept: list[DenseLayer] = []
    for batch in batches:
        step(batch)
        there, then = tokens_seen(other, batch, shared), list[Seen]()
        kept = kept or [DenseLayer(there, None)]
        move(other, kept[0].direction(there), LR)
        then = [tokens_seen(other, batch, shared)]
        kept[0].learn(there, then[0])
    assert_alike(model, other)


def tokens_seen(model: Tokens, batch: Tensor, shared: str) -> Seen:
    x = torch.cat([batch, torch.ones(*batch.shape[:2], 1, dtype=batch.dtype)], dim=2)
    y = model(batch).detach()
    delta = torch.softmax(y, dim=-1)
    S = torch.einsum("bto,bti->oi", delta, x) / len(batch)
    return Seen(S, x.mean(1) if shared == "reduce" else x.flatten(0, 1), y.mean((0, 1)), delta.sum((0, 1)) / len(batch))


@pytest.mark.parametrize("pairs", [None, 3])
@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_state_goes_on_where_it_was(frame: str, pairs: int | None) -> None:
    batches = [batch_of(3) / 3 for _ in range(10)]
    model, other = twins(generic_flow)
    step, again = (stepping(one, frame, pairs=pairs) for one in (model, other))
    for batch in batches[:4]:
        step(batch)
    again(batches[9])  # one that has gone elsewhere takes the state up as well
    other.load_state_dict(model.state_dict())
    again.load_state_dict(step.state_dict())
    for batch in batches[4:]:
        step(batch)
        again(batch)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize(
    "build",
    [
        partial(pair, update=partial(torch.optim.Adam, lr=1e-3)),
        partial(pair, update=partial(torch.optim.LBFGS, max_iter=3, lr=1e-3)),
        partial(KLClipped, update=partial(torch.optim.SGD, lr=1e-3)),
    ],
    ids=["Adam", "L-BFGS", "clipped"],
)
def test_it_learns_of_the_step_that_any_update_takes(build: Callable[..., Any]) -> None:
    """From where it set out to where it has led, wherever else the update evaluates."""
    model, batch = network("classifier")
    step = build(model, partial(KBFGS, frame="euclidean", decay=DECAY))
    before = list(looked_at(model, batch, relative=False))
    step(batch)
    after = looked_at(model, batch, relative=False)
    for outputs, here, there in zip(step.direction.outputs, before, after, strict=True):
        torch.testing.assert_close(outputs.s, (1 - DECAY) * (there.y - here.y), rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(outputs.y, (1 - DECAY) * (there.delta - here.delta), rtol=1e-8, atol=1e-14)
    for applied in step.direction.applied:
        assert not torch.equal(applied.left, torch.eye(len(applied.left), dtype=torch.float64))


def test_a_layer_that_does_not_move_learns_nothing_and_stays_finite() -> None:
    model, batch = network("tanh")
    step = stepping(model, lr=0.0)
    for _ in range(3):
        step(batch)
    for applied in step.direction.applied:
        assert torch.equal(applied.left, torch.eye(len(applied.left), dtype=torch.float64))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_makes_no_sense_is_refused() -> None:
    model = generic_flow()
    for damping in (0.0, 1.0, 3.0):
        with pytest.raises(ValueError, match=rf"damping must lie between 0 and 1, got damping={damping}.*least curvat"):
            KBFGS(model, damping=damping)
    with pytest.raises(ValueError, match="pairs must be at least 1, or null for a matrix, got pairs=0"):
        KBFGS(model, pairs=0)
    with pytest.raises(ValueError, match="momentum must lie in"):
        KBFGS(model, momentum=1.0)
    autoencoder, batch = network("tanh")
    with pytest.raises(TypeError, match="KBFGS with frame=relative, unlike euclidean, needs layers with log"):
        KBFGS(autoencoder)(batch)
    with pytest.raises(
        TypeError, match="KBFGS learns after each step, of which a quadratic model's step tells nothing"
    ):
        QuadraticStep(autoencoder, partial(KBFGS, frame="euclidean"))
