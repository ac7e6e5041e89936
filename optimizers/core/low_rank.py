"""Randomised low-rank approximation of symmetric positive semi-definite matrices.

Halko, Martinsson & Tropp 2011, "Finding structure with randomness", SIAM Review 53(2), arXiv 0909.4061: algorithm 4.4
(range finder with power iterations; M being symmetric, ``power`` products with M are half as many of its iterations)
and section 5.3 (eigenvalues from the compressed matrix).
"""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING, POWER = 10, 2


def randomized_eigh(
    M: Tensor, rank: int, oversampling: int = OVERSAMPLING, power: int = POWER
) -> tuple[Tensor, Tensor]:
    """O(k d²): the ``rank`` largest eigenvalues, ascending, ``[k]``, and their eigenvectors, ``[dim, k]``.

    Exact where M has at most that rank, and at k = dim. The sketch is drawn from torch's generator.
    """
    dim = len(M)
    columns = min(dim, rank + oversampling)
    Q = torch.linalg.qr(M @ torch.randn(dim, columns, dtype=M.dtype, device=M.device)).Q
    for _ in range(power):
        Q = torch.linalg.qr(M @ Q).Q
    values, vectors = torch.linalg.eigh(Q.T @ M @ Q)
    kept = min(rank, columns)
    return values[-kept:].clamp_min(0), Q @ vectors[:, -kept:]


def randomized_inverse(M: Tensor, shift: Tensor, rank: int) -> Tensor:
    """O(k d²): (M_k + shift · I)⁻¹ = (I − U diag(s / (s + shift)) Uᵀ) / shift, M_k = U diag(s) Uᵀ of that rank.

    Raises:
        FloatingPointError: M is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("a curvature factor is not finite: lower the learning rate")
    s, U = randomized_eigh(M, rank)
    inverse = (U * (-s / (s + shift))) @ U.T
    inverse.diagonal().add_(1)
    return inverse.div_(shift)
