"""The limit: the model's matrix products that no exact step can avoid, run alone.

It is timed in the same loop as the step, and is the denominator of every ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from torch import nn

from stepscale.bench.counting.operation_counts import product_flops
from stepscale.bench.counting.products import callables
from stepscale.bench.records.operations import Operand, ProductSpec
from stepscale.models import HasProducts, offers

Shape = tuple[int, int, int]


class Limit:
    """Runs products on the model's own device, where they can into outputs that are there already."""

    def __init__(self, model: nn.Module, products: list[ProductSpec]) -> None:
        self.flops = sum(product.flops for product in products)
        self.calls = callables(model, products)

    def run(self, times: int) -> None:
        """Run all products ``times`` times."""
        for _ in range(times):
            for call in self.calls:
                call()


def limit_of(model: nn.Module, rows: int, products: list[ProductSpec] | None) -> Limit | None:
    """Make a model's limit, for batches of ``rows``: the products it names, or else those that its loss was seen to do.

    Args:
        model: as it is trained, on its device.
        rows: B of a batch; for the products that a model names.
        products: what ``record_products`` found, of a model like this one; None where nobody looked.

    Returns:
        None where no product is known: the step is timed, and compared with nothing.
    """
    parameters = list(model.parameters())
    if offers(model, HasProducts):
        products = declared(parameters, list(model.products(rows)))
    return Limit(model, products) if products else None


def declared(parameters: list[nn.Parameter], shapes: list[Shape]) -> list[ProductSpec]:
    """Lay out products ``[m, k] × [k, n]`` of a model with these parameters in memory.

    Right-hand operands of a weight's shape are the model's own weights, in turn, so that they take no memory; square
    ones first transposed, as the forward pass uses them, then as they lie. Of any other operand and of outputs there
    are as many as the model has weights of that shape, and at least one: with one of its own for every product the
    limit would move more memory than the step does, and flatter it.
    """
    weights = [(-1 - k, p) for k, p in enumerate(parameters) if p.ndim == 2]
    transposed = [(k, W.T) for k, W in weights]
    kind = str(parameters[0].dtype).removeprefix("torch."), parameters[0].device.type
    places: dict[tuple[str, tuple[int, int]], Iterator[Operand]] = {}
    stretches = 0

    def operand(role: str, m: int, n: int) -> Operand:
        nonlocal stretches
        if (role, (m, n)) not in places:
            like = [(k, W) for k, W in transposed + weights if W.shape == (m, n)]
            found = [Operand(k, int(W.storage_offset()), [m, n], list(W.stride()), *kind) for k, W in like]
            if role != "right" or not found:
                first, stretches = stretches, stretches + max(1, len({k for k, _ in like}))
                found = [Operand(k, 0, [m, n], [n, 1], *kind) for k in range(first, stretches)]
            places[role, (m, n)] = cycle(found)
        return next(places[role, (m, n)])

    def product(m: int, k: int, n: int) -> ProductSpec:
        operands = [operand("left", m, k), operand("right", k, n)]
        return ProductSpec("aten.mm.default", list(operands), {}, operand("out", m, n), product_flops([(m, k, n)]))

    return [product(*shape) for shape in shapes]
