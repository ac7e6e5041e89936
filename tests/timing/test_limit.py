"""The limit of models that name their products: how it lies in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.timing.limit import Limit, limit_of
from stepscale.models import Autoencoder, Classifier, Flow, PLUFlow


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


def test_it_takes_a_weight_as_it_lies_or_transposed() -> None:
    model = Autoencoder(16, 4, hidden=[8, 4])
    limit = limit_for(model, 5)
    weights = {layer.weight.data_ptr() for layer in model.layers}
    assert {b.data_ptr() for a, b, _ in operands(limit) if a.shape[0] == 5} == weights
    before = [parameter.clone() for parameter in model.parameters()]
    limit.run(1)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
