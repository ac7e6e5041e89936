"""The gradient that a model estimates itself, and its natural gradient where every unit is Bernoulli given its inputs.

The Fisher matrix of a sigmoid belief net is block-diagonal, a block a unit: of unit j with inputs ā = [a, 1],

    F_j = E[q_j (1 − q_j) ā āᵀ],

as the scores (h_i − q_i) ā_i and (h_j − q_j) ā_j of two units are uncorrelated: given its inputs, one has mean 0. So
are those of two uses of a unit, where layers are tied: F_j is the sum over its uses.
Várady et al. 2020, "Natural reweighted wake-sleep", arXiv 2008.06687; natural bidirectional machines are the same.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor, nn

from stepscale.models import Batch, BernoulliUnits, Captures, LayerIO, one_of
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.frames import inputs as with_ones
from stepscale.optimizers.core.frames import write_whole
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require
from stepscale.optimizers.core.trained import trained

AT_ONCE = 2**24  # numbers of the systems that are solved side by side


class Form(StrEnum):
    """Of the systems that are solved."""

    AUTO = "auto"  # the smaller ones
    DIRECT = "direct"  # a system of the inputs
    WOODBURY = "woodbury"  # a system of the rows


class EstimatedGradient(Stateless):
    """O(B P): δᵀā/B, the gradient as the model's ``capture`` estimates it.

    For models whose ``loss`` is not what they are trained by, such as ``Helmholtz``: wake-sleep and its relatives.

    Raises:
        TypeError: the model has no ``capture``; or, when called, its loss holds log-determinants, which are left out.
    """

    facts = Facts(writes_in_place=True)

    def __init__(self, model: nn.Module) -> None:
        self.model = require(model, Captures, "estimated gradient")

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.model.capture(batch)
        if any(io.log_det for io in ios):
            raise TypeError("the estimated gradient leaves out log-determinants: use relative, inverse or layerwise")
        for io in trained(ios, shared=True):
            write_whole(io.layer, gradient(io))
        mark("gradient")


class UnitNatural(Stateless):
    """(1 + α) (F_j + α I)⁻¹ ∇_j of each unit j; O(d · d³) a layer by systems of the inputs, O(d (R d + R³)) of R rows.

    Args:
        model: offers ``capture`` and ``capture_units``.
        damping: α, above 0: the Fisher matrix of as few rows as a batch has is singular.
        form: ``"direct"`` solves a system of a unit's inputs, ``"woodbury"`` one of the rows, ``"auto"`` the smaller.

    Raises:
        ValueError: an option or a number is out of its range.
        TypeError: the model lacks a method.
        FloatingPointError: when called, and the parameters have diverged.
    """

    facts = Facts(writes_in_place=True)

    def __init__(self, model: nn.Module, *, damping: float = 0.1, form: str = "auto") -> None:
        self.model = require(model, Captures, "natural gradient by units")
        self.units = require(model, BernoulliUnits, "natural gradient by units")
        self.form = one_of("form", Form, form)
        if not damping > 0:
            raise ValueError(f"damping must be positive, got damping={damping}")
        self.damping = damping

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.model.capture(batch)
        mark("gradient")
        seen = self.units.capture_units(ios)
        mark("statistics")
        # with the weight of each row in place of δ, what is frozen and what is tied is told apart as of the gradients
        rows = [io._replace(a=a, u=q, y=q, delta=q * (1 - q), copies=1) for io, (a, q) in zip(ios, seen, strict=True)]
        for io, unit in zip(trained(ios, shared=True), trained(rows, shared=True), strict=True):
            inputs = with_ones(unit, False)
            direct = self.form is Form.DIRECT or (self.form is Form.AUTO and inputs.shape[1] <= len(inputs))
            solve = by_inputs if direct else by_rows
            spread = unit.delta if unit.copies == 1 else unit.delta * unit.copies  # the sum over a layer's uses
            write_whole(io.layer, solve(gradient(io), inputs, spread, self.damping))
        mark("precondition")


def gradient(io: LayerIO) -> Tensor:
    """O(rows · d²): δᵀā/B, ``[dim_out, dim_in (+1)]``."""
    return io.delta.T @ with_ones(io, False) / io.samples


def by_inputs(slope: Tensor, inputs: Tensor, spread: Tensor, damping: float) -> Tensor:
    """O(m (R n² + n³)): (1 + α) (F_j + α I)⁻¹ ∇_j with F_j = Σ_rows spread_j ā āᵀ / R, for each of m units.

    Args:
        slope: ∇, ``[m, n]``.
        inputs: ā, ``[R, n]``.
        spread: q (1 − q), ``[R, m]``.
        damping: α.
    """
    n, found = inputs.shape[1], []
    for some, c in zip(*_some(slope, spread.T / len(inputs), n), strict=True):
        F = (inputs.T * c.unsqueeze(1)) @ inputs
        F.diagonal(dim1=1, dim2=2).add_(damping)
        found.append(_solved(F, some))
    return (1 + damping) * torch.cat(found)


def by_rows(slope: Tensor, inputs: Tensor, spread: Tensor, damping: float) -> Tensor:
    """O(m (R n + R³) + R² n): the same, with S_j = diag(√(spread_j / R)) ā, as (∇ − Sᵀ (α I + S Sᵀ)⁻¹ S ∇) / α.

    The identity is Woodbury's. Less is lost to rounding the larger α is.
    """
    R = len(inputs)
    G, products, found = inputs @ inputs.T, slope @ inputs.T, []
    for some, root in zip(*_some(products, (spread.T / R).sqrt(), R), strict=True):
        K = G * root.unsqueeze(2) * root.unsqueeze(1)
        K.diagonal(dim1=1, dim2=2).add_(damping)
        found.append(root * _solved(K, root * some))
    return (1 + damping) / damping * (slope - torch.cat(found) @ inputs)


def _some(first: Tensor, second: Tensor, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split what belongs to units so that the systems solved at once have at most ``AT_ONCE`` numbers."""
    units = max(1, math.floor(AT_ONCE / max(1, size**2)))
    return first.split(units), second.split(units)


def _solved(K: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems ``[m, n, n]`` for ``[m, n]``, by Cholesky.

    Raises:
        FloatingPointError: one is not finite, or not positive definite even so.
    """
    factor, failed = torch.linalg.cholesky_ex(K)
    if bool(failed.any()):
        what = "not positive definite: raise damping" if bool(torch.isfinite(K).all()) else "not finite: lower the rate"
        raise FloatingPointError(f"a unit's Fisher matrix is {what}")
    return torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
