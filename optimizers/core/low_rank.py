"""Randomised low-rank approximation of symmetric positive semi-definite matrices.

Halko, Martinsson & Tropp 2011, "Finding structure with randomness", SIAM Review 53(2), arXiv 0909.4061: algorithm 4.4
(range finder with power iterations; M being symmetric, ``power`` products with M are half as many of its iterations)
and section 5.3 (eigenvalues from the compressed matrix).
"""

from __future__ import annotations

from dataclasses import dataclass

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


def randomized_inverse(M: Tensor, shift: Tensor, rank: int) -> Symmetric:
    """O(k d²): (M_k + shift · I)⁻¹ = (I − U diag(s / (s + shift)) Uᵀ) / shift, M_k = U diag(s) Uᵀ of that rank.

    It is formed, at O(k d²), where it multiplies no faster in factors: from k = d/2 on.

    Raises:
        FloatingPointError: M is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("a curvature factor is not finite: lower the learning rate")
    s, U = randomized_eigh(M, rank)
    inverse = LowRank(U, s / (s + shift), shift)
    return inverse if 2 * U.shape[1] < len(U) else inverse.dense()


@dataclass(frozen=True)
class LowRank:
    """(I − U diag(s) Uᵀ) / shift, a symmetric matrix that is never formed."""

    U: Tensor  # [dim, k]
    s: Tensor  # [k]
    shift: Tensor

    def dense(self) -> Tensor:
        """O(k d²)."""
        formed = (self.U * -self.s) @ self.U.T
        formed.diagonal().add_(1)
        return formed.div_(self.shift)


Symmetric = Tensor | LowRank
"""A symmetric matrix as what it does: multiply, by ``after`` and ``before``.

Of ``after`` it may be ``[rows, dim, dim]``, one for each row.
"""


def after(X: Tensor, M: Symmetric) -> Tensor:
    """O(rows · d²), of low rank O(rows · d k): X M; zeros stand for the columns of X that are missing."""
    columns = X.shape[1]
    if isinstance(M, Tensor) and M.ndim == 3:
        return torch.bmm(X.unsqueeze(1), M).squeeze(1)
    if isinstance(M, Tensor):
        return X @ (M if columns == len(M) else M[:columns])
    found = (X @ M.U[:columns] * -M.s) @ M.U.T
    found[:, :columns] += X
    return found.div_(M.shift)


def before(M: Symmetric, X: Tensor) -> Tensor:
    """O(columns · d²), of low rank O(columns · d k): M X."""
    if isinstance(M, Tensor):
        return M @ X
    return torch.addmm(X, M.U * -M.s, M.U.T @ X).div_(M.shift)


def columns(M: Symmetric | None) -> int:
    """How many products each number costs that ``M`` multiplies; none where there is no matrix."""
    if M is None:
        return 0
    return len(M) if isinstance(M, Tensor) else 2 * M.U.shape[1]


def plain(M: Symmetric | None) -> Tensor | dict[str, Tensor] | None:
    """Make it a part of a ``state_dict``."""
    return dict(vars(M)) if isinstance(M, LowRank) else M


def restored(saved: Tensor | dict[str, Tensor] | None) -> Symmetric | None:
    """Make it of ``plain``'s."""
    return LowRank(**saved) if isinstance(saved, dict) else saved
