"""log|det W| from one LU factorisation, from which its gradient W⁻ᵀ is then solved.

Autograd's own ``slogdet`` takes half as long again at dim 256 and a fifth more at dim 1024, on two CPU cores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx


def log_abs_det(W: Tensor) -> Tensor:
    """O(d³): log|det W| of one square matrix, as ``torch.linalg.slogdet(W).logabsdet``; −∞ where it is singular.

    Twice differentiable in reverse, then through ``torch.linalg.inv``; once forward; under ``torch.func``'s transforms.
    """
    value: Tensor = _LogAbsDet.apply(W)[0]  # type: ignore[no-untyped-call]
    return value


def inverse_transpose(W: Tensor) -> Tensor:
    """O(d³): W⁻ᵀ of one square matrix; faster than ``torch.linalg.inv`` on CPU, by a sixth.

    Raises:
        torch.linalg.LinAlgError: W is singular.
    """
    LU, pivots, failed = torch.linalg.lu_factor_ex(W)
    if failed.item():
        raise torch.linalg.LinAlgError("a weight is singular: lower the learning rate")  # type: ignore[attr-defined]
    return _solved(LU, pivots)


def _solved(LU: Tensor, pivots: Tensor) -> Tensor:
    identity = torch.eye(len(LU), device=LU.device, dtype=LU.dtype)
    # the transposed solve is the faster one, and leaves columns where all that follows wants rows
    return torch.linalg.lu_solve(LU, pivots, identity, adjoint=True).contiguous()


class _LogAbsDet(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        LU, pivots, _ = torch.linalg.lu_factor_ex(W)
        return LU.diagonal().abs().log().sum(), LU, pivots

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output[1:])
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def backward(ctx: BackwardCFunction, slope: Tensor, *_: Tensor) -> Tensor:  # type: ignore[override]
        W, LU, pivots = ctx.saved_tensors  # type: ignore[misc] # typed as empty
        differentiated_again = torch.is_grad_enabled()
        return slope * (torch.linalg.inv(W).T if differentiated_again else _solved(LU, pivots))

    @staticmethod
    def jvp(ctx: BackwardCFunction, dW: Tensor) -> tuple[Tensor, None, None]:
        return torch.linalg.lu_solve(*ctx.saved_tensors, dW).diagonal().sum(), None, None
