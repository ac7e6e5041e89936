"""The limit of models that name their products: how it lies in memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.counting.products import record_products
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import PeriodLog
from stepscale.bench.timing import limit
from stepscale.bench.timing.limit import Limit, limit_of, type_of
from stepscale.bench.timing.log_period import log_here
from stepscale.bench.timing.workload import Workload
from stepscale.models import Autoencoder, Batch, Classifier, Flow, PLUFlow
from stepscale.optimizers import Layerwise, Mark, Relative, no_mark, pair
from tests.support.jobs import job, logged


def limit_for(model: torch.nn.Module, rows: int) -> Limit:
    limit = limit_of(model, rows, None)
    assert limit is not None
    return limit


def operands(limit: Limit) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(*call.args, call.keywords["out"]) for call in limit.calls]  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", [Flow, PLUFlow, Autoencoder, Classifier])
def test_it_runs_the_products_that_the_model_names(model: Callable[[int], Flow]) -> None:
    made = model(16)
    limit = limit_for(made, 5)
    assert [(*a.shape, b.shape[1]) for a, b, _ in operands(limit)] == made.products(5)
    with OperationLog() as counts:
        limit.run(2)
    assert counts.flops == 2 * limit.flops == 2 * sum(2 * m * k * n for m, k, n in made.products(5))


def test_its_operands_are_like_the_models() -> None:
    model = Flow(8, 3).double()
    found = operands(limit_for(model, 5))
    weights = {layer.weight.data_ptr() for layer in model.layers}
    assert {b.data_ptr() for a, b, _ in found if len(a) != 8} == weights, "the weights themselves, in turn"
    assert [b.stride() for a, b, _ in found if len(a) != 8] == [(1, 8)] * 3 + [(8, 1)] * 3, "forward transposed"
    assert len({out.data_ptr() for a, _, out in found if a.shape == (8, 5)}) == 3, "as many outputs as layers"
    assert {part.dtype for parts in found for part in parts} == {torch.float64}


def test_a_large_output_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the limit adds to a model does not grow as d²: pieces of 40 numbers, where a weight has 64."""
    model = Flow(8, 2)
    whole = limit_for(model, 5)
    monkeypatch.setattr(limit, "LARGEST", 40)
    pieces = limit_for(model, 5)
    assert pieces.flops == whole.flops
    weighed = [found for found in operands(pieces) if found[1].shape == (5, 8)]
    assert [tuple(a.shape) for a, _, _ in weighed] == [(5, 5), (3, 5)] * 2
    assert len({out.data_ptr() for *_, out in weighed}) == 1, "one over the other"
    for call, (a, b, out) in zip(pieces.calls, operands(pieces), strict=True):
        call()
        torch.testing.assert_close(out, a @ b)
    lefts = torch.cat([a for a, *_ in weighed[:2]])
    assert lefts.shape == (8, 5) and len(lefts.unique()) == 40, "no row twice"
    parts = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
        for found in operands(pieces)
        for part in found
    }
    weights = {layer.weight.untyped_storage().data_ptr() for layer in model.layers}
    assert max(size for place, size in parts.items() if place not in weights) <= 4 * 2 * 5 * 8


def test_it_takes_a_weight_as_it_lies_or_transposed() -> None:
    model = Autoencoder(16, 4, hidden=[8, 4])
    limit = limit_for(model, 5)
    weights = {layer.weight.data_ptr() for layer in model.layers}
    assert {b.data_ptr() for a, b, _ in operands(limit) if a.shape[0] == 5} == weights
    before = [parameter.clone() for parameter in model.parameters()]
    limit.run(1)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


class MixedFlow(Flow):
    """Its loss runs in bfloat16; its capture, which does without autocast, in float32."""

    def log_prob_without_det(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().log_prob_without_det(x)


class MixedNet(torch.nn.Module):
    """A user's, which names no products; as a whole in bfloat16, or its first half."""

    def __init__(self, dim: int, whole: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.whole = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, dim), whole

    def loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.first(batch)
            if self.whole:
                return self.second(hidden.relu()).square().mean()
        return self.second(hidden.float()).square().mean()


def types(limit: Limit | None) -> set[torch.dtype]:
    assert limit is not None
    return {part.dtype for call in limit.calls for part in (*call.args, call.keywords["out"])}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("direction", "expected"), [(Layerwise, {torch.bfloat16}), (Relative, {torch.float32})], ids=["loss", "capture"]
)
def test_named_products_run_in_the_type_of_the_steps(direction: Any, expected: set[torch.dtype]) -> None:
    model = MixedFlow(8)
    workload = Workload(model, pair(model, direction, partial(torch.optim.SGD, lr=1e-3)), [torch.randn(5, 8)])
    notes = Notes()
    limit = limit_of(model, 5, None, log_here(workload, notes), notes)
    assert types(limit) == expected and "limit" not in notes
    before = [parameter.clone() for parameter in model.parameters()]
    limit.run(2)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("whole", "expected"), [(True, {"bfloat16"}), (False, {"bfloat16", "float32"})])
def test_replayed_products_run_in_the_type_of_the_losss(tmp_path: Path, whole: bool, expected: set[str]) -> None:
    only = ["model._target_=tests.timing.test_limit.MixedNet", "~model.depth", f"+model.whole={whole}"]
    asked = logged(job(tmp_path, *only, optimizer="layerwise"))
    assert asked.log.products is not None
    assert {argument.dtype for product in asked.log.products for argument in product.arguments} == expected
    found = measure_cell(asked)
    assert found.status == "ok" and found.timing.blocks.limit_s, found.notes


def test_a_loss_in_one_type_is_no_limit_of_a_step_in_another() -> None:
    """A direction that leaves the loss's autocast: no ratio, and a sentence."""
    model, notes = MixedNet(8), Notes()
    inner = [torch.randn(5, 8)]
    asked = record_products(model, inner[0])
    log = log_here(Workload(model, pair(model, Plain, partial(torch.optim.SGD, lr=1e-3)), inner), notes)
    assert limit_of(model, 5, asked, log, notes) is None
    assert "in several number types, or in others than the loss does" in notes["limit"]


class Plain(Layerwise):
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        hidden = self.model.first(batch).relu()  # type: ignore[attr-defined]
        self.model.second(hidden).square().mean().backward()  # type: ignore[attr-defined]


def test_an_updates_own_products_do_not_take_the_limit_away() -> None:
    """With more rows than ``dim`` the limit has a product [d, d] × [d, d], as Newton and Schulz have in bfloat16."""
    own = [("float32", (40, 8, 8)), ("float32", (8, 40, 8)), ("bfloat16", (8, 8, 8))]
    notes, log = Notes(), PeriodLog(period=1, lengths=[0], sequence=[], kinds=[], synchronisations=0, products=own)
    assert types(limit_of(Flow(8), 40, None, log, notes)) == {torch.float32} and not notes


def test_the_type_of_a_limit() -> None:
    shapes = [(5, 8, 8), (8, 5, 8)]
    assert type_of(shapes, [], "float32") == "float32", "not logged"
    assert type_of(shapes, [("bfloat16", (5, 8, 8)), ("float32", (3, 3, 3))], "float32") == "bfloat16"
    assert type_of(shapes, [("bfloat16", (8, 8, 8)), ("float32", (5, 8, 8))], "float32") == "float32", "Muon's own"
    assert type_of(shapes, [("bfloat16", (5, 8, 8)), ("float32", (5, 8, 8))], "float32") == "float32"
    assert type_of(shapes, [("bfloat16", (5, 8, 8)), ("float32", (8, 5, 8))], "float32") is None
    assert type_of(shapes, [("bfloat16", (8, 8, 5))], "float32") == "bfloat16", "transposed"
    assert type_of(shapes, [("bfloat16", (3, 3, 3))], "float32") == "bfloat16", "of all"


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("frozen", [[0], [1], [0, 1], [0, 2], [1, 2]], ids=str)
@pytest.mark.parametrize("kind", [Flow, Classifier])
def test_a_frozen_layer_has_no_part_in_the_limit(kind: Any, frozen: list[int], rows: int) -> None:
    """What autograd multiplies, of a model with as many layers frozen; on a flow u W comes on top, or (δᵀu) W."""
    model = kind(8, 3)
    for k in frozen:
        model.layers[k].requires_grad_(False)
    batch: Batch = torch.randn(rows, 8)
    if kind is Classifier:
        batch = batch, torch.randint(0, 3, (rows,))
    by_autograd = sum(product.flops for product in record_products(model, batch))
    weighed = 0 if kind is Classifier else 2 * min(rows, 8) * 8 * 8 * (3 - len(frozen))
    assert limit_for(model, rows).flops == by_autograd + weighed


def test_a_frozen_weight_beside_a_free_bias_is_gone_through_and_not_weighed() -> None:
    model = Flow(8, 3)
    for k in (0, 1):
        model.layers[k].weight.requires_grad_(False)
    assert model.products(5) == [(5, 8, 8)] * 3 + [(10, 8, 8), (5, 8, 8)] + [(8, 5, 8)]
