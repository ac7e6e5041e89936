"""What a step does, counted without a clock: FLOPs by shape, dispatched operations, host synchronisations.

``torch.utils.flop_counter`` counts no factorisation and crashes on ``jacrev`` through a module, hence this mode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Count [..., m, k] × [..., k, n] or [m, k] × [k]: two a multiply-add."""
    return 2.0 * a.numel() * (b.shape[-1] if b.ndim > 1 else 1)


def _cubic(factor: float) -> Callable[..., float]:
    """Count factor · n³ for each matrix of ``[..., n, n]``."""
    return lambda A, *rest: factor * A.numel() * A.shape[-1]


def _solve(A: torch.Tensor, B: torch.Tensor, factor: float) -> float:
    """Count factor · n² for each right-hand side."""
    return factor * A.shape[-1] * B.numel()


# an operation's arguments -> FLOPs; leading terms, as in Golub & Van Loan, "Matrix Computations"
RULES: dict[Any, Callable[..., float]] = {
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
    aten.linalg_inv_ex: _cubic(2),
    aten.linalg_lu_solve: lambda LU, pivots, B, *rest: _solve(LU, B, 2),
    aten.linalg_solve_triangular: lambda A, B, *rest: _solve(A, B, 1),
    aten.cholesky_solve: lambda B, L, *rest: _solve(L, B, 2),
    aten._linalg_solve_ex: lambda A, B, *rest: _cubic(2 / 3)(A) + _solve(A, B, 2),
}
SYNCHRONISING = {aten._local_scalar_dense, aten.nonzero, aten._linalg_check_errors}
UNKNOWN = re.compile(r"linalg|cholesky|mm$|mv$|svd|qr$|qrf$|eig|convolution|lstsq|triangular_solve|^_?lu_")
FREE = {aten.linalg_vector_norm, aten._linalg_check_errors, aten.linalg_diagonal}  # at most linear in the elements


class Counts(TorchDispatchMode):
    """While active, counts every operation that reaches the dispatcher, through autograd and ``torch.func`` alike.

    ``uncounted`` names matrix operations it saw and has no rule for: with such a remainder ``flops`` is a lower bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.operations = 0
        self.synchronisations = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        self.operations += 1
        self.synchronisations += operation in SYNCHRONISING
        if operation in RULES:
            self.flops += RULES[operation](*args)
        elif operation not in FREE and UNKNOWN.search(operation.__name__):
            self.uncounted.add(operation.__name__)
        return func(*args, **(kwargs or {}))


def product_flops(products: list[tuple[int, int, int]]) -> float:
    """FLOPs of matrix products ``[m, k] × [k, n]``."""
    return float(sum(2 * math.prod(shape) for shape in products))
