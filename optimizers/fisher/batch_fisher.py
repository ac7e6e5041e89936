"""The exact natural gradient of a subsampled Fisher matrix, by the batch's Gram matrix and not by the Fisher matrix.

Ren & Goldfarb 2019, "Efficient subsampled Gauss-Newton and natural gradient methods", arXiv 1906.02353; Benzing 2022,
arXiv 2201.12250. With the scores s_i of B rows as rows of S and F = SᵀS/B,

    (F + λ I)⁻¹ Sᵀ1/B = Sᵀ c,   (S Sᵀ + λ B I) c = 1,

and S Sᵀ needs no score: a layer's is g_i x̄_iᵀ − [N, 0] (the notation of ``frames``), so that

    s_i · s_j = Σ_layers (x̄_i · x̄_j)(g_i · g_j) − n_i − n_j + ‖N‖²,   n_i = g_iᵀ N x_i.

In the relative frame N = I: neither an inverse nor a determinant nor any product of order d³ is left.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, CapturesSamples, LayerIO, LogDet, one_of
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.frames import Frame, inputs, log_det_gradient, map_back, write
from stepscale.optimizers.core.statistics import Statistics
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require
from stepscale.optimizers.core.trained import gradient_of, trained


class Blocks(StrEnum):
    """What of the free parameters' Fisher matrix is kept: all of it, or its diagonal blocks, one a layer."""

    JOINT = "joint"
    LAYER = "layer"


class Scores(NamedTuple):
    """A layer's scores of a batch, as factors."""

    g: Tensor  # [batch, dim_out]
    x: Tensor  # x̄, [batch, dim (+1)]
    n: Tensor  # g_iᵀ N x_i, [batch]; zero without a log-determinant
    norm: Tensor  # ‖N‖²


class NaturalGradient(Stateless):
    """(F + λ I)⁻¹ ∇ with F the Fisher matrix of the batch, not factored; O(L (B d² + B² d) + B³).

    With log-determinants the Euclidean frame adds O(L d³), an inverse a layer, and samples of an invertible model an
    LU a layer.

    Args:
        model: offers ``capture``, and ``capture_samples`` where statistics come from the model.
        damping: λ, above 0: the Fisher matrix of a batch is singular.
        blocks: ``"joint"``, F of all parameters, or ``"layer"``, its diagonal blocks, at B³ for each of them.
        frame: ``"relative"``, for invertible layers, or ``"euclidean"``.
        statistics: ``"data"``, the scores of the batch itself: the empirical Fisher; or ``"model"``, of samples.

    Raises:
        ValueError: an option or a number is out of its range.
        TypeError: the model lacks a method, or its layers a log-determinant that the relative frame needs.
        FloatingPointError: when called, and the parameters have diverged.
    """

    facts = Facts(log_det=LogDet.EXACT, writes_in_place=True)

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 1.0,
        blocks: str = "joint",
        frame: str = "relative",
        statistics: str = "data",
    ) -> None:
        self.model = require(model, Captures, "natural gradient")
        sampled = one_of("statistics", Statistics, statistics) is Statistics.MODEL
        self.sampler = require(model, CapturesSamples, "natural gradient (statistics=model)") if sampled else None
        self.joint = one_of("blocks", Blocks, blocks) is Blocks.JOINT
        self.relative = one_of("frame", Frame, frame) is Frame.RELATIVE
        if not damping > 0:
            raise ValueError(f"damping must be positive, got damping={damping}")
        self.damping = damping

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        captured = self.model.capture(batch)
        ios = trained(captured, "natural gradient with frame=relative" if self.relative else None)
        mark("gradient")
        normals = [log_det_gradient(io.layer) if io.log_det and not self.relative else None for io in ios]
        data = [scores(io, self.relative, N) for io, N in zip(ios, normals, strict=True)]
        drawn = data
        if self.sampler is not None:
            samples = trained(self.sampler.capture_samples(captured))
            drawn = [scores(io, self.relative, N) for io, N in zip(samples, normals, strict=True)]
            mark("statistics")
        weights = self._weights(data, drawn)
        mark("inverse")
        for io, N, own, other, c in zip(ios, normals, data, drawn, weights, strict=True):
            self._write(io, N, own, other, c.to(own.g.dtype))
        mark("precondition")

    def _weights(self, data: list[Scores], drawn: list[Scores]) -> list[Tensor]:
        """O(L B² d + B³): for each layer, c as above; or of other samples w = (S Sᵀ + λ B I)⁻¹ S ∇."""
        sampled = self.sampler is not None
        grams = [gram(own, own) for own in drawn]
        right = [gram(own, other).mean(1) if sampled else None for own, other in zip(drawn, data, strict=True)]
        if not self.joint:
            return [solve(K, self.damping, v) for K, v in zip(grams, right, strict=True)]
        total = torch.stack([v for v in right if v is not None]).sum(0) if sampled else None
        return [solve(torch.stack(grams).sum(0), self.damping, total)] * len(grams)

    def _write(self, io: LayerIO, N: Tensor | None, data: Scores, drawn: Scores, c: Tensor) -> None:
        """O(B d²): Sᵀ c, or (∇ − Sᵀ w)/λ, mapped back to the parameters, into ``.grad``."""
        if self.sampler is not None:
            left = torch.cat([data.g / len(data.g), drawn.g * -c.unsqueeze(1)]) / self.damping
            right, share = torch.cat([data.x, drawn.x]), (1 - c.sum()) / self.damping
        else:
            left, right, share = data.g * c.unsqueeze(1), data.x, c.sum()
        layer, relative = io.layer, self.relative and io.log_det
        if relative:
            right, N = map_back(right, layer), layer.weight
        write(layer, left, right, None)
        if N is not None:
            gradient_of(layer.weight).addcmul_(N, share, value=-1)
        if relative and layer.bias is not None:
            gradient_of(layer.bias).addcmul_(layer.bias, share, value=-1)


def scores(io: LayerIO, relative: bool, N: Tensor | None) -> Scores:
    """O(B d), in the Euclidean frame with ``N`` = W⁻ᵀ O(B d²): a layer's scores as factors."""
    x, none = inputs(io, relative), io.delta.new_zeros(())
    if relative and io.log_det:
        return Scores(io.delta, x, (io.delta * io.y).sum(1), none + io.y.shape[1])
    if N is None:
        return Scores(io.delta, x, none.expand(len(x)), none)
    return Scores(io.delta, x, ((io.delta @ N) * io.a).sum(1), N.square().sum())


def gram(one: Scores, other: Scores) -> Tensor:
    """O(B² d): s_i · s_j of one layer, ``[batch, batch]``."""
    products = (one.x @ other.x.T) * (one.g @ other.g.T)
    return products - one.n.unsqueeze(1) - other.n + one.norm


def solve(K: Tensor, damping: float, right: Tensor | None) -> Tensor:
    """O(B³): (K + λ B I)⁻¹ right in float64; None for a vector of ones. By Cholesky, K being a Gram matrix.

    Raises:
        FloatingPointError: K is not finite, or not positive definite even so: float32 cannot resolve so small a λ.
    """
    damped = K.double()
    damped.diagonal().add_(damping * len(K))
    ones = torch.ones(len(K), 1, dtype=torch.float64, device=K.device)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        what = "not positive definite: raise damping" if torch.isfinite(K).all() else "not finite: lower the rate"
        raise FloatingPointError(f"the batch's Gram matrix is {what}")
    return torch.cholesky_solve(ones if right is None else right.double().unsqueeze(1), factor).squeeze(1)
