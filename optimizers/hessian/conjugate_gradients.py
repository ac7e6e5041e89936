"""Preconditioned conjugate gradients that stop by progress, and keep some of their iterates.

Martens 2010, "Deep learning via Hessian-free optimization", ICML, sections 4.4 to 4.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SPACING = 1.3  # kept are the iterates 1, 2, 3, 4, 5, 7, 9, …: ⌈SPACING^j⌉
WINDOW = 10  # iterations, or a tenth of those done, over which progress is judged


class Iterate(NamedTuple):
    """A point that conjugate gradients came by."""

    x: Tensor  # [P]
    q: float  # ½ xᵀA x − bᵀx


def conjugate_gradients(
    times: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    start: Tensor,
    scale: Tensor,
    iterations: int,
    tolerance: float = 0.0,
) -> tuple[list[Iterate], int]:
    """One product and O(P) an iteration: minimise q(x) = ½ xᵀA x − bᵀx; return kept iterates, and how many were done.

    Args:
        times: multiplies by A, symmetric and positive definite.
        b: ``[P]``.
        start: the first x, ``[P]``.
        scale: the preconditioner's diagonal, ``[P]``.
        iterations: at most.
        tolerance: ε; it ends where q < 0 and the last k iterations have brought less than the share k ε of it. With 0
            it ends where the residual is rounding, or at the last iteration.
    """
    x, r = start, times(start) - b
    y = r / scale
    p, size = -y, r @ y  # the preconditioned residual's square, rᵀM⁻¹r, from the start
    least = size * torch.finfo(b.dtype).eps ** 2
    values = [(0.5 * x @ (r - b)).item()]
    kept: list[Iterate] = []
    due = 1
    for i in range(1, iterations + 1):
        Ap = times(p)
        curvature = p @ Ap
        if not curvature > 0 or not size > least:  # rounding, as A is positive
            break
        x, r = x + size / curvature * p, r + size / curvature * Ap
        values.append((0.5 * x @ (r - b)).item())  # needs no product; waiting for it is what stopping needs
        y = r / scale
        before, size = size, r @ y
        p = size / before * p - y
        ends = i == iterations or slow(values, tolerance)
        if i >= due or ends:
            kept.append(Iterate(x, values[-1]))
            due = next_kept(i)
        if ends:
            break
    done = len(values) - 1
    if not kept or kept[-1].x is not x:
        kept.append(Iterate(x, values[-1]))
    return kept, done


def next_kept(i: int) -> int:
    """Return the first iteration after i that is kept."""
    j = math.floor(math.log(i) / math.log(SPACING))
    while math.ceil(SPACING**j) <= i:
        j += 1
    return math.ceil(SPACING**j)


def slow(values: list[float], tolerance: float) -> bool:
    """Whether the last k values of q have brought less than the share k ε of it."""
    i = len(values) - 1
    k = max(WINDOW, i // 10)
    return i > k and values[-1] < 0 and (values[-1] - values[-1 - k]) / values[-1] < k * tolerance
