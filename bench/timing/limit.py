"""The limit: the model's matrix products that no exact step can avoid, run alone.

It is timed in the same loop as the step, and is the denominator of every ratio.
"""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor, nn

from stepscale.bench.counting.operation_counts import OperationLog, product_flops
from stepscale.models import Batch, HasProducts, offers, rows_of
from stepscale.optimizers import Layerwise

Shape = tuple[int, int, int]


class Limit:
    """Runs ``[m, k] × [k, n]`` products into preallocated outputs.

    Right-hand operands of a weight's shape are the model's own weights, in turn, so that they take no memory. Of any
    other operand and of outputs there are as many as the model has weights of that shape, and at least one: with one of
    its own for every product the limit would move more memory than the step does, and flatter it.
    """

    def __init__(self, model: nn.Module, products: list[Shape], device: torch.device, dtype: torch.dtype) -> None:
        self.flops = product_flops(products)
        weights = [p.detach() for p in model.parameters() if p.ndim == 2]
        buffers: dict[tuple[str, tuple[int, int]], cycle[Tensor]] = {}

        def buffer(role: str, shape: tuple[int, int]) -> Tensor:
            if (role, shape) not in buffers:
                like = [W if W.shape == shape else W.T for W in weights if shape in (W.shape, W.T.shape)]
                if role != "b" or not like:
                    like = [torch.randn(shape, device=device, dtype=dtype) for _ in range(max(1, len(like)))]
                buffers[role, shape] = cycle(like)
            return next(buffers[role, shape])

        self.calls = [(buffer("a", (m, k)), buffer("b", (k, n)), buffer("out", (m, n))) for m, k, n in products]

    def run(self, times: int) -> None:
        """Run all products ``times`` times."""
        for _ in range(times):
            for a, b, out in self.calls:
                torch.mm(a, b, out=out)


def limit_of(model: nn.Module, batch: Batch, dim: int) -> Limit:
    """Make the limit of a model on its own device and in its own type.

    Raises:
        TypeError: its loss holds no matrix product, and it does not say which are its limit's.
    """
    products, weight = products_of(model, batch, dim), next(model.parameters())
    if not products:
        raise TypeError(f"{type(model).__name__}.loss has no matrix product to compare with; give it products(batch)")
    return Limit(model, products, weight.device, weight.dtype)


def products_of(model: nn.Module, batch: Batch, dim: int) -> list[Shape]:
    """List the model's own products, or else as many FLOPs as its loss's forward and backward pass has, in dim × dim.

    Without ``model.products`` it runs that pass once.
    """
    rows = rows_of(batch)
    if offers(model, HasProducts):
        return list(model.products(rows))
    with OperationLog() as counts:
        Layerwise(model)(batch)
    model.zero_grad()
    whole, rest = divmod(round(counts.flops / (2 * dim * dim)), dim)
    return [(dim, dim, dim)] * whole + [(rest, dim, dim)] * (rest > 0)
