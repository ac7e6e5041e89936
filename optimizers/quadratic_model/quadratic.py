"""The quadratic model of a loss, M(δ) = ½ δᵀ(F + λ I)δ + ∇ᵀδ, in the span of a few directions.

Martens & Grosse 2015, arXiv 1503.05671, sections 6.4 and 7; F is the exact Fisher matrix of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stepscale.models import LayerIO, Tangents, slopes
from stepscale.optimizers.core.tangents import inner


class QuadraticModel(NamedTuple):
    """M of Σ w_i v_i: ½ wᵀ curvature w + slopeᵀ w."""

    curvature: Tensor  # v_iᵀ(F + λ I)v_j, [n, n]
    slope: Tensor  # ∇ᵀv_i, [n]
    tiny: float  # of a curvature, relative to the largest: what the sums resolve

    def of(self, chosen: list[int]) -> QuadraticModel:
        """O(n²): M in the span of some of the directions."""
        return self._replace(curvature=self.curvature[chosen][:, chosen], slope=self.slope[chosen])

    def minimum(self) -> tuple[Tensor, Tensor]:
        """O(n³): the weights that minimise M, and M there less M(0).

        Raises:
            FloatingPointError: M is not finite: the parameters have diverged.
        """
        # of a 2×2 matrix, where no launch and no wait is dear
        weights = -least_squares(self.curvature.cpu(), self.slope.cpu(), self.tiny).to(self.slope.device)
        return weights, 0.5 * self.slope @ weights


def quadratic_model(
    ios: list[LayerIO], directions: list[Tangents], roots: list[Tensor], damping: float
) -> QuadraticModel:
    """O(B P), as ``slopes`` more: M in the span of the directions.

    ``roots`` are X v of each, XᵀX / rows = F. The inner products of λ are those of the parameters in either frame.
    """
    products = [[damping * inner(u, v) for v in directions] for u in directions]
    curvature = torch.stack([torch.stack(row) for row in products])
    stacked = torch.stack([root.flatten() for root in roots]).double()
    curvature = curvature + stacked @ stacked.T / len(roots[0])
    slope = torch.stack([slopes(ios, direction).mean().double() for direction in directions])
    return QuadraticModel(curvature, slope, torch.finfo(ios[0].y.dtype).eps)


def least_squares(M: Tensor, right: Tensor, tiny: float) -> Tensor:
    """M⁺ right for a small symmetric positive semi-definite matrix: the directions may be parallel.

    Eigenvalues below ``tiny`` times the largest count as none, after scaling to a unit diagonal.

    Raises:
        FloatingPointError: it is not finite: the parameters have diverged.
    """
    if not torch.isfinite(M).all():
        raise FloatingPointError("the quadratic model is not finite: raise damping")
    size = M.diagonal().clamp_min(torch.finfo(M.dtype).tiny).sqrt()
    values, vectors = torch.linalg.eigh(M / torch.outer(size, size))
    inverse = torch.where(values > tiny * values[-1], 1 / values, 0.0)
    return vectors @ (inverse * (vectors.T @ (right / size))) / size
