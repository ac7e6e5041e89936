"""The limit: the model's matrix products that no exact step can avoid, run alone.

It is timed in the same loop as the step, and is the denominator of every ratio.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from msgspec.structs import replace
from torch import nn

from stepscale.bench.counting.operation_counts import product_flops
from stepscale.bench.counting.products import INTO, callables
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import Operand, PeriodLog, ProductSpec
from stepscale.models import HasProducts, offers

Shape = tuple[int, int, int]
LARGEST = 2**28  # numbers of an output: 1 GiB in float32


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


def limit_of(
    model: nn.Module,
    rows: int,
    products: list[ProductSpec] | None,
    log: PeriodLog | None = None,
    notes: Notes | None = None,
) -> Limit | None:
    """Make a model's limit, for batches of ``rows``: the products it names, or else those that its loss was seen to do.

    They are of the number type in which the step was seen to run products of their shapes: of a model under
    ``torch.autocast`` that is another than its weights'.

    Args:
        model: as it is trained, on its device.
        rows: B of a batch; for the products that a model names.
        products: what ``record_products`` found, of a model like this one; None where nobody looked.
        log: of the step; None where it was not logged, and is believed to run in the type of the weights.
        notes: say why there is no limit where the step runs its products in several types, or others than the loss.

    Returns:
        None where no product is known: the step is timed, and compared with nothing.
    """
    parameters, seen = list(model.parameters()), log.products if log else []
    notes = Notes() if notes is None else notes
    own = str(parameters[0].dtype).removeprefix("torch.")
    kind: str | None = own
    if offers(model, HasProducts):
        shapes = list(model.products(rows))
        kind = type_of([shape for shape in shapes if rows in shape] or shapes, seen, own)  # an update has none of rows
        products = declared(parameters, shapes, kind) if kind else None
    elif any(type_of([shape], seen, kind) != kind for kind, shape in _typed(products or [])):
        kind = None
    if kind is None:
        notes["limit"] = "the step runs the limit's products in several number types, or in others than the loss does"
        return None
    return Limit(model, products) if products else None


def type_of(shapes: list[Shape], seen: list[tuple[str, Shape]], own: str) -> str | None:
    """Return the number type in which all products of these shapes were seen, ``own`` if they can be; None if none is.

    A product counts as its transpose. Where none of these shapes was seen, the types of all products count.
    """
    found = [{kind for kind, there in seen if there in (shape, shape[::-1])} for shape in shapes]
    common = set.intersection(*([kinds for kinds in found if kinds] or [{kind for kind, _ in seen}]))
    if own in common or not seen:
        return own
    return common.pop() if len(common) == 1 else None


def _typed(products: list[ProductSpec]) -> list[tuple[str, Shape]]:
    """Return the types and shapes of the recorded products of two matrices."""
    found = []
    for product in products:
        factors = [argument for argument in product.arguments if isinstance(argument, Operand)]
        if product.operation in INTO and len(factors) == 2 and len(factors[1].shape) > 1:
            a, b = factors
            found.append((a.dtype, (a.shape[-2], a.shape[-1], b.shape[-1])))
    return found


def declared(parameters: list[nn.Parameter], shapes: list[Shape], dtype: str) -> list[ProductSpec]:
    """Lay out products ``[m, k] × [k, n]`` of a number type, of a model with these parameters, in memory.

    Right-hand operands of a weight's shape and type are the model's own weights, in turn, so that they take no memory;
    square ones first transposed, as the forward pass uses them, then as they lie. Of any other operand and of outputs
    there are as many as the model has weights of that shape, and at least one: with one of its own for every product
    the limit would move more memory than the step does, and flatter it. An output of more than ``LARGEST`` numbers is
    written in pieces, one over the other, so that a model is measured that leaves its device no room for another of its
    weights: no cache holds a piece either, and each keeps a device as busy as the whole.
    """
    weights = [(-1 - k, p) for k, p in enumerate(parameters) if p.ndim == 2]
    transposed = [(k, W.T) for k, W in weights]
    kind, own = (dtype, parameters[0].device.type), dtype == str(parameters[0].dtype).removeprefix("torch.")
    places: dict[tuple[str, tuple[int, int]], Iterator[Operand]] = {}
    stretches = 0

    def operand(role: str, m: int, n: int) -> Operand:
        nonlocal stretches
        if (role, (m, n)) not in places:
            like = [(k, W) for k, W in transposed + weights if W.shape == (m, n)]
            found = [Operand(k, int(W.storage_offset()), [m, n], list(W.stride()), *kind) for k, W in like]
            if role != "right" or not found or not own:
                first, stretches = stretches, stretches + max(1, len({k for k, _ in like}))
                found = [Operand(k, 0, [m, n], [n, 1], *kind) for k in range(first, stretches)]
            places[role, (m, n)] = cycle(found)
        return next(places[role, (m, n)])

    def product(m: int, k: int, n: int) -> Iterator[ProductSpec]:
        left, right, rows = operand("left", m, k), operand("right", k, n), min(m, max(1, LARGEST // n))
        out = operand("out", rows, n)
        for first in range(0, m, rows):
            count = min(rows, m - first)
            part = replace(left, offset=left.offset + first * left.stride[0], shape=[count, k])
            into = replace(out, shape=[count, n])
            yield ProductSpec("aten.mm.default", [part, right], {}, into, product_flops([(count, k, n)]))

    return [part for shape in shapes for part in product(*shape)]
