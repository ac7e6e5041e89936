"""What a step does, counted without a clock: FLOPs by shape, operations, host synchronisations, bytes.

``torch.utils.flop_counter`` counts no factorisation and crashes on ``jacrev`` through a module, hence this mode.
"""

from __future__ import annotations

import math
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
Keywords = Mapping[str, Any]  # of an operation; torch names no types of them
TypedProduct = tuple[str, tuple[int, int, int]]  # the type and the shape (m, k, n) of a product [m, k] × [k, n]


def _product(a: Tensor, b: Tensor) -> float:
    """Count [..., m, k] × [..., k, n] or [m, k] × [k]: two a multiply-add."""
    return 2.0 * a.numel() * (b.shape[-1] if b.ndim > 1 else 1)


def _cubic(factor: float) -> Callable[..., float]:
    """Count factor · n³ for each matrix of ``[..., n, n]``."""
    return lambda A, *rest: factor * A.numel() * A.shape[-1]


def _solve(A: Tensor, B: Tensor, factor: float) -> float:
    """Count factor · n² for each right-hand side."""
    return factor * A.shape[-1] * B.numel()


def _svd(A: Tensor, full: bool = False, *rest: object) -> float:
    """Count Golub's and Reinsch's way, with thin or whole bases; values alone are computed with bases while logged."""
    m, n = float(max(A.shape[-2:])), float(min(A.shape[-2:]))
    one = 4 * m**2 * n + 8 * m * n**2 + 9 * n**3 if full else 14 * m * n**2 + 8 * n**3
    return math.prod(A.shape[:-2]) * one


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *rest: object,
) -> float:
    """Count two for each number of the filters at each place they are laid on: of the output, transposed the input."""
    places = list(x.shape[2:])
    if not transposed:
        geometry = zip(places, weight.shape[2:], stride, padding, dilation, strict=True)
        places = [(n + 2 * pad - gap * (size - 1) - 1) // step + 1 for n, size, step, pad, gap in geometry]
    return 2.0 * x.shape[0] * math.prod(places) * weight.numel()


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: object, *rest: Any) -> float:
    """Count as much as forward for the input's gradient, and again for the filters', of those that are asked for."""
    *geometry, asked = rest
    return _convolution(x, weight, None, *geometry) * sum(asked[:2])


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> float:
    """Count q kᵀ and its product with v, by heads; a causal mask saves none."""
    return 2.0 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> float:
    """Count the five products: q kᵀ anew, and two each for its and the values' gradients."""
    return 2.0 * math.prod(q.shape[:-1]) * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


# an operation's arguments -> FLOPs; leading terms, as in Golub & Van Loan, "Matrix Computations"
RULES: dict[object, Callable[..., float]] = {
    aten.mm: lambda a, b, *rest: _product(a, b),
    aten.addmm: lambda c, a, b, *rest: _product(a, b),
    aten.bmm: lambda a, b, *rest: _product(a, b),
    aten.baddbmm: lambda c, a, b, *rest: _product(a, b),
    aten.mv: lambda a, b, *rest: _product(a, b),
    aten.addmv: lambda c, a, b, *rest: _product(a, b),
    aten.dot: lambda a, b: _product(a, b),
    aten._linalg_slogdet: _cubic(2 / 3),
    aten._linalg_det: _cubic(2 / 3),
    aten.linalg_lu_factor_ex: _cubic(2 / 3),
    aten.linalg_cholesky_ex: _cubic(1 / 3),
    aten.cholesky_inverse: _cubic(2 / 3),
    aten.linalg_inv_ex: _cubic(8 / 3),  # torch solves against the identity; LAPACK's own inverse takes 2
    aten._linalg_eigh: _cubic(9),  # with eigenvectors, by the symmetric QR algorithm
    aten._linalg_svd: _svd,
    aten.linalg_qr: lambda A, *rest: (
        4.0 * A.numel() * A.shape[-1] - _cubic(4 / 3)(A[..., : A.shape[-1], :])
    ),  # Q, R thin
    aten.linalg_lu_solve: lambda LU, pivots, B, *rest: _solve(LU, B, 2),
    aten.linalg_solve_triangular: lambda A, B, *rest: _solve(A, B, 1),
    aten.cholesky_solve: lambda B, L, *rest: _solve(L, B, 2),
    aten._linalg_solve_ex: lambda A, B, *rest: _cubic(2 / 3)(A) + _solve(A, B, 2),
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
}
# the two factors' places among an operation's arguments
FACTORS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
SYNCHRONISING = {aten._local_scalar_dense, aten.nonzero, aten._linalg_check_errors}
UNKNOWN = re.compile(r"linalg|cholesky|mm$|mv$|svd|qr$|qrf$|eig|convolution|attention|lstsq|triangular_solve|^_?lu_")
TORCHS_OWN = ("aten", "prim", "prims", "profiler", "c10d")  # namespaces whose names UNKNOWN is made for
FREE = {aten.linalg_vector_norm, aten._linalg_check_errors, aten.linalg_diagonal}  # at most linear in the elements


@cache
def _out_of_place(operation: OpOverloadPacket) -> OpOverloadPacket:
    """Return the operation of which this is the in-place form, or itself: ``addmm`` for ``addmm_``."""
    name = operation.__name__
    ours = operation is getattr(aten, name, None)  # not another library's of the same name
    return getattr(aten, name.removesuffix("_"), operation) if ours else operation


def _brings_to_host(operation: OpOverloadPacket, args: Sequence[Any], kwargs: Keywords) -> bool:
    """Whether it copies from a CUDA device to the host, which then waits, as in ``.cpu()`` and ``.tolist()``."""
    if operation is aten._to_copy:
        asked = kwargs.get("device")
        return args[0].device.type == "cuda" and asked is not None and torch.device(asked).type == "cpu"
    return operation is aten.copy_ and args[1].device.type == "cuda" and args[0].device.type == "cpu"


class Logged(NamedTuple):
    """One operation that reached the dispatcher."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # of its tensors, those it makes where it is given none
    flops: float | None  # by its rule; None of one that has none
    elements: int  # that it touches, each tensor's once; none of a view
    uncounted: bool  # a matrix operation without a rule

    @property
    def work(self) -> float:
        """FLOPs, else elements touched."""
        return float(self.elements) if self.flops is None else self.flops


class OperationLog(TorchDispatchMode):
    """While active, logs every operation that reaches the dispatcher, through autograd and ``torch.func`` alike.

    ``uncounted`` names matrix operations it saw and has no rule for: with such a remainder ``flops`` is a lower bound.
    What ``torch.compile`` has compiled runs as it is written while this is active, and in this process ever after.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Logged] = []
        self.synchronisations = 0
        self.products: set[TypedProduct] = set()

    @property
    def flops(self) -> float:
        return sum(operation.flops or 0.0 for operation in self.operations)

    @property
    def uncounted(self) -> set[str]:
        return {operation.name for operation in self.operations if operation.uncounted}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Keywords | None = None
    ) -> object:
        operation = _out_of_place(func.overloadpacket)
        self.synchronisations += operation in SYNCHRONISING or _brings_to_host(operation, args, kwargs or {})
        if operation in FACTORS:
            self.products.add(_typed(*args[FACTORS[operation] :][:2]))
        result = func(*args, **(kwargs or {}))
        given, made = _tensors((args, kwargs)), _tensors(result)
        self.operations.append(
            Logged(
                name=operation.__name__,
                shapes=tuple(tuple(tensor.shape) for tensor in given or made),
                flops=RULES[operation](*args) if operation in RULES else None,
                elements=0 if _is_view(func) else _touched([*given, *made]),
                uncounted=operation not in RULES and operation not in FREE and _may_be_matrix_work(func),
            )
        )
        return result


def _typed(a: Tensor, b: Tensor) -> TypedProduct:
    return str(a.dtype).removeprefix("torch."), (a.shape[-2], a.shape[-1], b.shape[-1])


def _may_be_matrix_work(func: OpOverload) -> bool:
    """Whether an operation without a rule may do more than touch its elements: by its name, or as another library's."""
    return func.namespace not in TORCHS_OWN or UNKNOWN.search(func.overloadpacket.__name__) is not None


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_view(func: OpOverload) -> bool:
    """Whether an operation returns its input's own memory, and writes nothing."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _touched(tensors: Sequence[Tensor]) -> int:
    """Elements of distinct tensors: a foreach operation lists one several times."""
    return sum({(tensor.data_ptr(), tensor.numel()): tensor.numel() for tensor in tensors}.values())


class Allocated(TorchDispatchMode):
    """While active, counts the bytes of the tensors that operations make: what is alive of them, and its peak.

    Free of noise, unlike a process's resident set; what a library's own kernels borrow meanwhile is not in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Keywords | None = None
    ) -> object:
        self._meet((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, new=True)
        return result

    def _meet(self, tensors: object, new: bool) -> None:
        for tensor in _tensors(tensors):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes() if new else 0
            if key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._lose, key, size))
                self.live_bytes += size
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _lose(self, key: int, size: int, _: weakref.ref[torch.UntypedStorage]) -> None:
        del self._known[key]
        self.live_bytes -= size


def compiled_here() -> bool:
    """Whether ``torch.compile`` has compiled anything in this process: logged, it would run as written ever after."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"])


def product_flops(products: list[tuple[int, int, int]]) -> float:
    """FLOPs of matrix products ``[m, k] × [k, n]``."""
    return float(sum(2 * math.prod(shape) for shape in products))
