"""The spectrum of a loss's Hessian by Lanczos: its largest eigenvalue and its density.

Granziol, Zohren & Roberts 2020, "Learning rates as a function of batch size", arXiv 2006.09092; Golub & Meurant 1994
for Lanczos quadrature. Reorthogonalised against all that came before: without it Ritz values repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepscale.models import Batch, HasLoss
from stepscale.optimizers.core.step import require
from stepscale.optimizers.core.trained import trainable

Times = Callable[[Tensor], Tensor]
"""Multiplies a vector ``[n]`` by a symmetric matrix."""


class Ritz(NamedTuple):
    """Of k Lanczos steps from one vector."""

    values: Tensor  # [k], ascending
    weights: Tensor  # [k], of the quadrature: squares of the start's parts along the Ritz vectors; they sum to 1
    vectors: Tensor  # [n, k], orthonormal


class Density(NamedTuple):
    """A distribution of eigenvalues: some values, each with a share of them."""

    values: Tensor  # [m], ascending
    weights: Tensor  # [m]; they sum to 1


def hessian_products(model: nn.Module, batch: Batch) -> tuple[Tensor, Times]:
    """Return the batch's gradient, ``[P]``, and the product of a vector and its loss's Hessian, by autograd twice.

    O(B P) each; on a flow O(L d³).

    Raises:
        TypeError: the model has no ``loss``, or nothing that is trained.
    """
    parameters = trainable(model)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        loss = require(model, HasLoss, "Hessian").loss(batch)
        gradient = joined(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))

    def times(v: Tensor) -> Tensor:
        found = torch.autograd.grad(gradient, parameters, v, retain_graph=True, materialize_grads=True)
        return joined(found)

    return gradient.detach(), times


def joined(parts: Sequence[Tensor]) -> Tensor:
    """O(P): tensors as one vector, ``[P]``."""
    return torch.cat([part.flatten() for part in parts])


@torch.no_grad()
def lanczos(times: Times, start: Tensor, steps: int) -> Ritz:
    """K products and O(k² n): Ritz values of a symmetric matrix, and weights of Gauss quadrature from ``start``.

    It ends early where the Krylov space is exhausted.

    Raises:
        ValueError: ``steps`` is below 1, or the start is 0.
        FloatingPointError: the start, or a product, is not finite.
    """
    size = start.norm().item()
    if not math.isfinite(size):
        raise FloatingPointError("Lanczos met a gradient that is not finite: lower the learning rate")
    if steps < 1 or not size > 0:
        raise ValueError(f"Lanczos needs at least 1 step and a start that is not 0, got steps={steps} and ‖v‖={size:g}")
    Q, alphas, betas = [start / size], [], []
    largest, rounding = start.new_zeros(()), math.sqrt(len(start)) * torch.finfo(start.dtype).eps  # of a product
    for _ in range(min(steps, len(start))):
        w = times(Q[-1])
        largest = torch.maximum(largest, w.norm())
        alphas.append(Q[-1] @ w)
        known = torch.stack(Q)
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            w = w - known.T @ (known @ w)
        beta = w.norm()
        if not beta > rounding * largest:
            break
        betas.append(beta)
        Q.append(w / beta)
    T = torch.diag(torch.stack(alphas).double())
    k = len(alphas)
    if k > 1:
        off = torch.stack(betas[: k - 1]).double()
        T = T + torch.diag(off, 1) + torch.diag(off, -1)
    if not bool(T.isfinite().all()):
        raise FloatingPointError("Lanczos met a Hessian that is not finite: lower the learning rate")
    values, vectors = torch.linalg.eigh(T)
    basis = torch.stack(Q[:k], dim=1)
    return Ritz(values, vectors[0].square(), basis @ vectors.to(basis.dtype))


def largest_eigenvalue(times: Times, start: Tensor, steps: int = 20) -> float:
    """K products: the largest Ritz value, which is never above the largest eigenvalue."""
    return lanczos(times, start, steps).values[-1].item()


def spectral_density(times: Times, like: Tensor, *, steps: int = 40, probes: int = 8) -> Density:
    """K products a probe: nodes and weights of the density of eigenvalues, by stochastic Lanczos quadrature.

    Σ w f(λ) estimates the mean of f over the eigenvalues, tr f(A) / n. ``like`` gives n, dtype and device; probes are
    of random signs, by the generator of its device.
    """
    found = [lanczos(times, torch.randn_like(like).sign(), steps) for _ in range(probes)]
    values, weights = torch.cat([one.values for one in found]), torch.cat([one.weights for one in found]) / probes
    order = values.argsort()
    return Density(values[order], weights[order])


def heavy_ball(largest: float, smallest: float) -> tuple[float, float]:
    """Polyak's learning rate and momentum, with the best rate of heavy ball on a quadratic, (√κ − 1) / (√κ + 1).

    Raises:
        ValueError: not 0 < smallest ≤ largest.
    """
    if not 0 < smallest <= largest:
        raise ValueError(
            f"eigenvalues must be positive and in order, got largest={largest:g} and smallest={smallest:g}"
        )
    high, low = largest**0.5, smallest**0.5
    return 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2
