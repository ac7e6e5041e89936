"""The matrix products that a pass through a model executes, as plain data: recorded in one process, run in another.

A product is an operation and its operands; an operand is a strided view of a stretch of memory. Products share their
stretches as the recorded pass does, whose allocator reuses what is free, so that they find the caches as the pass does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from stepscale.bench.counting.operation_counts import RULES, aten
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import Argument, Operand, ProductSpec
from stepscale.models import Batch, HasLoss, HasProducts, offers
from stepscale.optimizers import require

# these take a place for the result, by out=
INTO: dict[str, Callable[..., object]] = {
    "aten.mm.default": torch.mm,
    "aten.bmm.default": torch.bmm,
    "aten.mv.default": torch.mv,
}
# an operation -> the product in it, which begins at that argument: what is added to it is none
WITHIN: dict[OpOverload, tuple[OpOverload, int]] = {
    aten.mm.default: (aten.mm.default, 0),
    aten.bmm.default: (aten.bmm.default, 0),
    aten.mv.default: (aten.mv.default, 0),
    **dict.fromkeys((aten.addmm.default, aten.addmm_.default), (aten.mm.default, 1)),
    **dict.fromkeys((aten.baddbmm.default, aten.baddbmm_.default), (aten.bmm.default, 1)),
    **dict.fromkeys((aten.addmv.default, aten.addmv_.default), (aten.mv.default, 1)),
}
AS_THEY_ARE = {operation for operation in RULES if "convolution" in str(operation) or "attention" in str(operation)}


def record_products(model: nn.Module, batch: Batch) -> list[ProductSpec]:
    """Run the loss's forward and backward pass once, and list its matrix products, convolutions and attention kernels.

    ``.grad`` stays as it is. Functions that ``torch.compile`` has compiled are not so any more afterwards: record in a
    process of its own, or before anything is compiled.

    Raises:
        TypeError: the model has no ``loss``.
    """
    loss = require(model, HasLoss, "the limit").loss
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    try:
        model.zero_grad()
        with torch.enable_grad(), _Recorder(parameters) as recorder:
            loss(batch).backward()
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return recorder.products


def products_of(model: nn.Module, batch: Batch, notes: Notes) -> list[ProductSpec] | None:
    """Record a model's products, unless it names its own; what goes wrong is noted, and costs the limit alone."""
    if not offers(model, HasProducts):
        with notes.optional("limit"):
            return record_products(model, batch)
    return None


def callables(model: nn.Module, products: list[ProductSpec]) -> list[Callable[[], object]]:
    """Rebuild recorded products on random numbers, in the model's own parameters and memory beside them.

    Raises:
        RuntimeError: the model is none of the recorded one's shapes.
    """
    parameters = list(model.parameters())
    here = parameters[0].device
    sizes: dict[tuple[int, str, str], int] = defaultdict(int)
    for operand in (operand for product in products for operand in _operands(product) if operand.memory >= 0):
        key = operand.memory, operand.dtype, operand.device
        sizes[key] = max(sizes[key], _end(operand))
    stretches = {
        (memory, dtype, device): _numbers(size, _dtype(dtype), here if device == here.type else torch.device(device))
        for (memory, dtype, device), size in sizes.items()
    }

    def tensor(argument: Argument) -> Argument | Tensor:
        if not isinstance(argument, Operand):
            return argument
        if argument.memory < 0:
            memory = parameters[-1 - argument.memory].detach()
        else:
            memory = stretches[argument.memory, argument.dtype, argument.device]
        return memory.as_strided(argument.shape, argument.stride, argument.offset)

    def call(product: ProductSpec) -> Callable[[], object]:
        keywords = {name: tensor(value) for name, value in product.keywords.items()}
        if product.out is not None:
            keywords["out"] = tensor(product.out)
        operation: Callable[..., object]
        operation = INTO.get(product.operation) or attrgetter(product.operation)(torch.ops)
        return partial(operation, *map(tensor, product.arguments), **keywords)

    return [call(product) for product in products]


class _Recorder(TorchDispatchMode):
    """While active, records the products."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.products: list[ProductSpec] = []
        places = enumerate(p.untyped_storage().data_ptr() for p in parameters)
        self._memory = {place: -1 - k for k, place in places}
        self._stretches = 0

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func in WITHIN:
            product, first = WITHIN[func]
            self._record(product, args[first : first + 2], {}, result)
        elif func.overloadpacket in AS_THEY_ARE:
            self._record(func, args, kwargs or {}, None)
        return result

    def _record(self, func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object], out: object) -> None:
        tensors = [value for value in (*args, *kwargs.values(), out) if isinstance(value, Tensor)]
        if any(tensor.layout is not torch.strided for tensor in tensors):
            return  # a lower limit is one still
        arguments = [self._plain(value) for value in args]
        keywords = {name: self._plain(value) for name, value in kwargs.items()}
        into = self._operand(out) if isinstance(out, Tensor) else None
        if into is not None and into.memory in {a.memory for a in arguments if isinstance(a, Operand)}:
            into = replace(into, memory=self._new_stretch())  # no product runs into what it reads
        self.products.append(ProductSpec(str(func), arguments, keywords, into, RULES[func.overloadpacket](*args)))

    def _plain(self, value: object) -> Argument:
        if isinstance(value, Tensor):
            return self._operand(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple) and all(isinstance(item, bool | int) for item in value):
            return list(value)
        raise TypeError(f"a product with an argument of type {type(value).__name__} cannot be recorded")

    def _operand(self, tensor: Tensor) -> Operand:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._memory:
            self._memory[place] = self._new_stretch()
        dtype = str(tensor.dtype).removeprefix("torch.")
        offset, shape, stride = int(tensor.storage_offset()), list(tensor.shape), list(tensor.stride())
        return Operand(self._memory[place], offset, shape, stride, dtype, tensor.device.type)

    def _new_stretch(self) -> int:
        self._stretches += 1
        return self._stretches - 1


def _operands(product: ProductSpec) -> list[Operand]:
    values = (*product.arguments, *product.keywords.values(), product.out)
    return [value for value in values if isinstance(value, Operand)]


def _end(operand: Operand) -> int:
    """Elements of memory up to the operand's last."""
    if 0 in operand.shape:
        return operand.offset
    return operand.offset + 1 + sum((n - 1) * step for n, step in zip(operand.shape, operand.stride, strict=True))


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch)[name]
    assert isinstance(dtype, torch.dtype)
    return dtype


def _numbers(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random ones; where they are no numbers, as in a mask, ones."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(size, dtype=dtype, device=device)
    return torch.ones(size, dtype=dtype, device=device)
