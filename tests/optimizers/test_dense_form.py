"""The dense form of TNT, Shampoo and mini-block Fisher, as released code computes it: the same parameters, at d³."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.models import MLP, Batch, Classifier, Flow
from stepscale.optimizers import KFAC, TNT, MiniBlock, Schedule, Shampoo, pair
from stepscale.optimizers.kronecker.momentum import WithMomentum
from tests.conftest import batch_of, generic_flow
from tests.support.dense import assert_alike, network, twins

pytestmark = pytest.mark.numerical

METHODS: dict[str, Callable[..., WithMomentum]] = {
    "tnt": TNT,
    "shampoo": Shampoo,
    "shampoo sum": partial(Shampoo, accumulation="sum"),
    "mini block": MiniBlock,
}
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], str]] = {
    "classifier": (lambda: network("classifier", 2)[0], lambda: network("classifier", 2)[1], "euclidean"),
    "flow": (generic_flow, lambda: batch_of(2) / 3, "relative"),
    "flow, euclidean": (lambda: Flow(5, 2, bias=False).double(), lambda: batch_of(2) / 3, "euclidean"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("which", "momentum"), [*((which, 0.9) for which in MODELS), ("flow", 0.0)])
def test_both_forms_write_the_same_parameters(which: str, name: str, momentum: float) -> None:
    """Over 200 steps, of which every seventh makes the inverses anew."""
    make, batch, frame = MODELS[which]
    batches = [batch() for _ in range(200)]
    models = twins(make)
    schedule = Schedule(statistics=1, inverse=7, decay=0.9, eager=5)
    options: dict[str, Any] = {"damping": 0.3, "momentum": momentum, "frame": frame, "schedule": schedule}
    for model, form in zip(models, ("factored", "dense"), strict=True):
        torch.manual_seed(1)  # of the targets that are drawn
        step = pair(model, partial(METHODS[name], form=form, **options), partial(torch.optim.SGD, lr=1e-3))
        for one in batches:
            step(one)
    assert_alike(*models)


def flops_between(direction: WithMomentum, batch: Batch) -> float:
    """Of a step after the one that inverts."""
    direction(batch)
    with OperationLog() as log:
        direction(batch)
    assert not log.uncounted
    return log.flops


def slope(method: Callable[..., WithMomentum]) -> float:
    """Of a step between inversions, on the classifier, of 16 rows, from d = 256 to 512."""
    flops = []
    for dim in (256, 512):
        model, batch = Classifier(dim, 2, classes=10), (torch.randn(16, dim), torch.randint(0, 10, (16,)))
        direction = method(model, frame="euclidean", schedule=Schedule(statistics=1, inverse=20))
        flops.append(flops_between(direction, batch))
    return math.log2(flops[1] / flops[0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("method", [TNT, Shampoo, MiniBlock])
def test_between_inversions_the_dense_form_is_cubic_and_the_other_is_not(
    method: Callable[..., WithMomentum], momentum: float
) -> None:
    assert slope(partial(method, momentum=momentum)) <= 2.05
    assert slope(partial(method, momentum=momentum, form="dense")) >= 2.8


def test_k_fac_with_momentum_does_no_cubic_work_between_inversions() -> None:
    assert slope(partial(KFAC, momentum=0.9)) <= 2.05


@pytest.mark.parametrize(("method", "products"), [(Shampoo, 4), (MiniBlock, 2)])
def test_a_dense_step_s_products(method: Callable[..., WithMomentum], products: int) -> None:
    """Of layers d × d without a bias: products of d³; S, once squared and once in m; and the captured batch's own."""
    d, B, L = 32, 5, 3
    model = MLP([d] * (L + 1), activation="tanh", output="gaussian", bias=False)
    batch = torch.randn(B, d), torch.randn(B, d)
    direction = method(model, frame="euclidean", form="dense", schedule=Schedule(statistics=1, inverse=20))
    capture = 2 * (2 * L - 1) * B * d**2
    assert flops_between(direction, batch) == capture + L * (products * 2 * d**3 + 2 * 2 * B * d**2)


def test_between_inversions_tnt_does_little_more_than_k_fac() -> None:
    """Statistics in every step of both, d = 10 B: Gram matrices, and momentum, which K-FAC leaves to the update."""
    model, batch = Classifier(500, 4, classes=10), (torch.randn(50, 500), torch.randint(0, 10, (50,)))
    options: dict[str, Any] = {"frame": "euclidean", "schedule": Schedule(statistics=1, inverse=20)}
    kfac = flops_between(KFAC(model, **options), batch)
    assert kfac < flops_between(TNT(model, **options), batch) < 1.15 * kfac
