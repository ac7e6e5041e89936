"""BFGS of limited memory: H is I and what the last pairs (s, y) make of it, and is never formed.

Its compact form, of Byrd, Nocedal & Schnabel 1994, "Representations of quasi-Newton matrices and their use in limited
memory methods", Mathematical Programming 63: with the pairs as rows of S and Y, oldest first, R the upper triangle of
S Yᵀ and D its diagonal,

    H = I + [Sᵀ, Yᵀ] C [Sᵀ, Yᵀ]ᵀ,    C = [[R⁻ᵀ (D + Y Yᵀ) R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LimitedMemory:
    """H of the last k pairs; a place that holds none has zeros, so that every step costs the same."""

    S: Tensor  # [k, dim]
    Y: Tensor  # [k, dim]
    C: Tensor  # [2k, 2k]

    @classmethod
    def empty(cls, pairs: int, like: Tensor) -> LimitedMemory:
        """O(k d): H = I of ``like``'s width, ``[dim]``, type and device."""
        none = like.new_zeros(pairs, len(like))
        return cls(none, none.clone(), like.new_zeros(2 * pairs, 2 * pairs))

    def times(self, X: Tensor) -> Tensor:
        """O(k d) a column: H X of ``[dim]`` or ``[dim, columns]``."""
        k = len(self.S)
        weights = self.C @ torch.cat([self.S @ X, self.Y @ X])
        return X + self.S.T @ weights[:k] + self.Y.T @ weights[k:]

    def taking(self, s: Tensor, y: Tensor) -> LimitedMemory:
        """O(k² d + k³): with one pair more, and without the oldest; one without s·y > 0 takes its place as zeros."""
        sy = s @ y
        sound = (sy > 0) & sy.isfinite()
        S = torch.cat([self.S[1:], s.where(sound, 0.0).unsqueeze(0)])
        Y = torch.cat([self.Y[1:], y.where(sound, 0.0).unsqueeze(0)])
        R = (S @ Y.T).triu()
        D = R.diagonal()
        D.copy_(D.where(D > 0, 1.0))
        one = torch.eye(len(R), dtype=R.dtype, device=R.device)
        inverse = torch.linalg.solve_triangular(R, one, upper=True)
        corner = inverse.T @ (Y @ Y.T + torch.diag(D)) @ inverse
        C = torch.cat([torch.cat([corner, -inverse.T], 1), torch.cat([-inverse, torch.zeros_like(one)], 1)])
        return LimitedMemory(S, Y, C)
