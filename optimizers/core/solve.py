"""Damped inverses."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky_inverse(M: Tensor, shift: float | Tensor) -> Tensor:
    """O(d³): (M + shift · I)⁻¹ of a matrix, or of each of several ``[n, d, d]``.

    Raises:
        FloatingPointError: M is not finite: the parameters have diverged.
        torch.linalg.LinAlgError: the sum is not positive definite.
    """
    damped = M.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(shift)
    try:
        return torch.cholesky_inverse(torch.linalg.cholesky(damped))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if not torch.isfinite(damped).all():
            raise FloatingPointError("a curvature factor is not finite: lower the learning rate") from error
        least = torch.linalg.eigvalsh(damped).min().item()
        error.args = (f"a damped curvature factor has the eigenvalue {least:.3g}: raise damping",)
        raise
