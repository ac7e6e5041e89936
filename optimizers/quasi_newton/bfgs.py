"""BFGS: a matrix H that stands for an inverse Hessian matrix, and learns from pairs (s, y) of a move and its effect.

After a pair H y = s. A Hessian matrix that is not convex, or a pair that is noise, would take H's definiteness away;
two dampings keep it: Powell's, which bounds H by the pair, and Goldfarb, Ren & Bahamou's, which bounds the pair itself
(2020, "Practical quasi-Newton methods for training deep neural networks", NeurIPS, arXiv 2006.08877).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

POWELL = 0.2  # μ₁: the least s·y, as a share of yᵀH y


class Change(NamedTuple):
    """H ← H + U C Uᵀ, of rank 2; none for a pair without s·y > 0, as of a layer that does not move."""

    U: Tensor  # [dim, 2]
    C: Tensor  # [2, 2]


def bfgs(s: Tensor, y: Tensor, Hy: Tensor) -> Change:
    """O(d): (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ less H, ρ = 1/s·y; all of them ``[dim]``."""
    sy = s @ y
    rho = 1 / sy
    square = rho * (rho * (y @ Hy) + 1)  # ρ² alone may overflow
    C = torch.stack([square, -rho, -rho, torch.zeros_like(rho)]).view(2, 2)
    sound = (sy > 0) & square.isfinite()
    return Change(torch.stack([s, Hy], dim=1).where(sound, 0.0), C.where(sound, 0.0))


def doubly_damped(s: Tensor, y: Tensor, H: Callable[[Tensor], Tensor], least: float) -> tuple[Tensor, Tensor]:
    """O(d), and one product with H: a pair of which s·y ≥ ``least`` s·s > 0.

    First s moves towards H y until s·y ≥ μ₁ yᵀH y, then y towards s. ``least``, μ₂, must be below 1, which is what
    the second has at its end.
    """
    Hy = H(y)
    sy, yHy = s @ y, y @ Hy
    share = torch.where(sy < POWELL * yHy, (1 - POWELL) * yHy / (yHy - sy), 1.0)
    s = torch.lerp(Hy, s, share)
    sy, ss = s @ y, s @ s
    share = torch.where(sy < least * ss, (1 - least) * ss / (ss - sy), 1.0)
    return s, torch.lerp(s, y, share)
