"""Relative gradient descent as one fused step, on which the log-likelihood stays known.

The relative gradient of Gresele et al. 2020 (arXiv 2006.15090) multiplies W from the left, so a step of plain gradient
descent, W ← W − η (δᵀv/B − I) W, multiplies it by (1 + η) (I − c δᵀv), c = η / ((1 + η) B), and

    Δ log|det W| = d log(1 + η) + log|det(I − c v δᵀ)|,

a determinant of min(B, d) rows. It holds for plain descent alone: with momentum or Adam the factor is of full rank.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, LayerIO, LogDet, TracksLogProb, log_abs_det_and_rounding, one_of
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, StateDict, no_mark, require, require_served
from stepscale.optimizers.core.trained import trainable, trained
from stepscale.optimizers.relative.relative import Bias, moved, write_bias_gradient


class RelativeSGD:
    """Relative gradient and plain SGD in one pass over W; O(L (B d² + B² d + B³)), with ``track`` off O(L B d²).

    The same parameters as ``pair(Relative, torch.optim.SGD)``, with no gradient formed. While it tracks,
    ``log_abs_dets`` holds each layer's log|det W| now (float64, ``[depth]``), so that
    ``log_likelihood`` costs no determinant, and no step can make W singular: all eigenvalues of c v δᵀ lie within its
    Frobenius norm, and a layer's η is halved until that is below ``bound``.

    Args:
        model: offers ``capture`` and ``captured_log_prob``; every layer square with a log|det W| in the loss.
        lr: learning rate η.
        bias: the group whose relative gradient it is, as for ``Relative``.
        bound: share of W's regularity that a step may use up, in (0, 1]: no direction shrinks by more. At 1 W
            stays invertible, yet one outlying batch may shrink a singular value close to zero, which recovers slowly.
        track: whether to guard the step and to carry the log-determinants along.

    Attributes:
        halved: how many times a layer's η has been halved.
        rounding_nats: by how much one rounding of W, as at the end of each step, may change the sum of the tracked
            log-determinants unseen, at most, with W as at the last ``anchor``; so n steps later it is off by no more
            than 5/4 n times as much: a series that stands for a determinant adds a quarter. NaN where nothing is
            tracked.

    Raises:
        ValueError: an argument is out of its range.
        FloatingPointError: it is to track a weight whose log-determinant one rounding may change by a nat or more.
        TypeError: the model lacks a method; or, at the first step, its capture a parameter.
        FloatingPointError: when called, and a layer's δ or v is not finite.
    """

    facts = Facts(log_det=LogDet.EXACT)

    def __init__(
        self, model: nn.Module, lr: float, bias: str = "plain", bound: float = 0.25, track: bool = True
    ) -> None:
        self.model = require(model, Captures, "relative")
        self.density = require(model, TracksLogProb, "relative") if track else None
        self.bias = one_of("bias", Bias, bias)
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if not 0 < bound <= 1:
            raise ValueError(f"bound must lie in (0, 1], got {bound}")
        self.lr, self.bound, self.track, self.halved = lr, bound, track, 0
        self.parameters = trainable(model)
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        self.layers = list(layers.values())
        if track and any(layer.in_features != layer.out_features for layer in self.layers):
            raise TypeError(f"the relative direction needs square layers, which not all of {type(model).__name__} are")
        self.checked = False
        self.log_abs_dets, self.rounding_nats = torch.empty(0), math.nan
        if track:
            self._track(list(layers))
        self.seen: tuple[list[LayerIO], Tensor] | None = None  # the last batch, and log|det W| as it found them

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.seen = None  # or two batches' activations would be in memory
        ios = self.model.capture(batch)
        free = trained(ios, "the relative gradient")
        if not self.checked:
            self._check([io.layer for io in ios])
        mark("gradient")
        rates = self._tracked_rates(ios, free) if self.track else [self.lr] * len(free)
        mark("determinants")
        for io, lr in zip(free, rates, strict=True):
            descend(io, lr, self.bias)
        mark("update")

    @torch.no_grad()
    def log_likelihood(self) -> Tensor:
        """O(L B d): mean log-likelihood of the last batch in nats under the parameters that the step found; float64.

        NaN before the first step, and where nothing is tracked.
        """
        if self.seen is None or self.density is None:
            return torch.tensor(math.nan, dtype=torch.float64)
        ios, dets = self.seen
        return self.density.captured_log_prob(ios).mean().double() + dets.sum()

    def anchor(self) -> float | None:
        """O(L d³): compute the log-determinants anew in float64; return by how many nats they had drifted.

        None where nothing is tracked.
        In float32 W itself is rounded: below 1e-4 nats in 2,000 steps at dim 256 where W is well conditioned, after
        which one may anchor; ``rounding_nats`` says what it may come to elsewhere.
        """
        if not self.track:
            return None
        tracked = self.log_abs_dets
        self._track()
        return (tracked - self.log_abs_dets).sum().item()

    def state_dict(self) -> StateDict:
        return {"log_abs_dets": self.log_abs_dets, "rounding_nats": self.rounding_nats, "halved": self.halved}

    def load_state_dict(self, state: StateDict) -> None:
        self.log_abs_dets, self.halved, self.seen = state["log_abs_dets"], state["halved"], None
        self.rounding_nats = state["rounding_nats"]

    def _check(self, captured: list[nn.Linear]) -> None:
        """See that every parameter, and every determinant that is carried along, is of a captured layer."""
        served = {id(parameter) for layer in captured for parameter in layer.parameters()}
        require_served("the relative gradient", (p for p in self.parameters if id(p) not in served))
        if self.track and captured != self.layers:
            raise TypeError(f"{type(self.model).__name__}.capture() returns other layers than its nn.Linear modules")
        self.checked = True

    def _track(self, names: list[str] | None = None) -> None:
        """Compute the log-determinants and how sure they are; refuse a singular weight where the layers are named."""
        self.log_abs_dets, rounding = log_abs_dets(self.layers)
        for name, nats in zip(names or [], rounding.tolist(), strict=False):
            if not nats < 1:
                raise FloatingPointError(
                    f"the weight of {name} is singular to rounding, which may change its log-determinant by {nats:.2g} "
                    "nats: start from a regular one, as nn.init.orthogonal_ makes, or set track=false"
                )
        self.rounding_nats = rounding.sum().item()

    def _tracked_rates(self, ios: list[LayerIO], free: list[LayerIO]) -> list[float]:
        """Each trained layer's η within the bound; the determinants before the step kept, and after it."""
        self.seen = ios, self.log_abs_dets
        rates = [self.lr] * len(free)
        moving = [k for k, io in enumerate(free) if io.log_det]  # of any other a bias alone is trained
        if not moving:
            return rates
        factors = [free[k] for k in moving]
        outer = outer_products(factors, self.bias, self.lr)
        found = moments(outer)
        for place, k in enumerate(moving):
            while not self._keeps_regular(found[place].norm, rates[k]):
                by = share(rates[k] / 2, 1, outer.dtype) / share(rates[k], 1, outer.dtype)
                rates[k], self.halved = rates[k] / 2, self.halved + 1
                found[place] = found[place].scaled(by)
                outer[place].mul_(by)
        widths = [io.layer.in_features for io in factors]
        changes = log_abs_det_changes(outer, found, widths, [rates[k] for k in moving])
        if len(moving) < len(self.layers):
            places = {id(layer.weight): place for place, layer in enumerate(self.layers)}
            indices = torch.tensor([places[id(io.layer.weight)] for io in factors], device=changes.device)
            changes = torch.zeros_like(self.log_abs_dets).index_add_(0, indices, changes)
        self.log_abs_dets = self.log_abs_dets + changes
        return rates

    def _keeps_regular(self, norm: float, lr: float) -> bool:
        """Whether c ‖v δᵀ‖_F < ``bound``.

        A positive determinant would prove nothing: two eigenvalues may have crossed zero.

        Raises:
            FloatingPointError: the norm is not finite.
        """
        if not math.isfinite(norm):
            raise FloatingPointError(f"a layer's outputs or their gradients are not finite at lr={lr:g}: lower lr")
        return norm < self.bound


def descend(io: LayerIO, lr: float, bias: Bias) -> None:
    """O(B d²): W ← (1 + η) W − η δᵀ(v W)/B and b ← b − η db, in place; associated from the right."""
    W, b = io.layer.weight, io.layer.bias
    if not io.log_det:  # a bias alone
        W.addmm_(io.delta.T, io.a, alpha=-lr / len(io.a))
        return
    v = moved(io, bias)
    if b is not None:
        gradient = torch.empty_like(b)
        write_bias_gradient(io, bias, gradient)
        b.sub_(gradient, alpha=lr)
    W.addmm_(io.delta.T, v @ W, beta=1 + lr, alpha=-lr / len(v))


@lru_cache
def growth(lr: float, dtype: torch.dtype) -> float:
    """Return what W is multiplied by, 1 + η rounded: taken exactly, d log(1 + η) would drift 5e-8 d nats a step."""
    return torch.tensor(1 + lr, dtype=torch.promote_types(dtype, torch.float32)).item()


def share(lr: float, batch: int, dtype: torch.dtype) -> float:
    """Return c = η / ((1 + η) B)."""
    return lr / growth(lr, dtype) / batch


def outer_products(ios: list[LayerIO], bias: Bias, lr: float) -> Tensor:
    """O(L B d min(B, d)): −c v δᵀ of each layer, ``[layers, batch, batch]``; if it is smaller, −c δᵀ v."""
    batch, widths = len(ios[0].a), {io.layer.in_features for io in ios}
    by_rows = batch < max(widths) or len(widths) > 1
    rows = batch if by_rows else max(widths)
    found = ios[0].delta.new_empty(len(ios), rows, rows)
    alpha = -share(lr, batch, found.dtype)
    for io, K in zip(ios, found, strict=True):
        v = moved(io, bias)
        left, right = (v, io.delta.T) if by_rows else (io.delta.T, v)
        torch.addmm(K, left, right, beta=0, alpha=alpha, out=K)
    return found


class Moments(NamedTuple):
    """Of a matrix K of n rows: n, ‖K‖_F, tr K and tr K²."""

    rows: int
    norm: float
    trace: float
    square: float

    def scaled(self, by: float) -> Moments:
        """Those of K times a number."""
        return Moments(self.rows, self.norm * by, self.trace * by, self.square * by**2)

    def log_det(self) -> tuple[float, float]:
        """O(1): log det(I + K) to second order about (1 + tr K / n) I, and by how much it may be wrong.

        With tr Q = 0, log det(I + Q) = −tr Q²/2 + tr Q³/3 − …, and |tr Qᵏ| ≤ ‖Q‖ᵏ_F.
        """
        mean = self.trace / self.rows
        if mean <= -1:
            return math.nan, math.inf
        apart = math.sqrt(max(0.0, self.norm**2 - self.rows * mean**2)) / (1 + mean)  # ‖Q‖_F
        square = (self.square - self.rows * mean**2) / (1 + mean) ** 2
        wrong = apart**3 / 3 / (1 - apart) if apart < 1 else math.inf
        return self.rows * math.log1p(mean) - square / 2, wrong


def moments(K: Tensor) -> list[Moments]:
    """O(L n²): the moments of each matrix, ``[layers, n, n]``; the one wait for the device."""
    sums = (K * K.mT).sum((1, 2), dtype=torch.float64)
    traces = K.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
    norms = torch.linalg.vector_norm(K, dim=(1, 2)).double()
    return [Moments(K.shape[1], *found) for found in zip(*torch.stack([norms, traces, sums]).tolist(), strict=True)]


def log_abs_det_changes(outer: Tensor, found: list[Moments], widths: list[int], rates: list[float]) -> Tensor:
    """Δ log|det W| of a step by its −c v δᵀ, ``[layers, n, n]``, and their moments; float64, ``[layers]``.

    O(1) by the moments where they are wrong by a quarter of what one rounding of W may change, ε d/2 at the least, or
    by less. Else O(L n³).
    """
    series = [moments.log_det() for moments in found]
    dilation = [width * math.log(growth(lr, outer.dtype)) for width, lr in zip(widths, rates, strict=True)]
    allowed = torch.finfo(outer.dtype).eps / 8
    if all(wrong <= allowed * width for (_, wrong), width in zip(series, widths, strict=True)):
        changes = [value + by for (value, _), by in zip(series, dilation, strict=True)]
        return torch.tensor(changes, dtype=torch.float64, device=outer.device)
    factors = outer.double()
    factors.diagonal(dim1=1, dim2=2).add_(1)
    LU, _, _ = torch.linalg.lu_factor_ex(factors.mT)  # of columns, as LAPACK wants them; slogdet's signs cost more
    whole = LU.diagonal(dim1=1, dim2=2).abs().log().sum(1)
    return whole.add_(torch.tensor(dilation, dtype=whole.dtype, device=whole.device))


def log_abs_dets(layers: list[nn.Linear]) -> tuple[Tensor, Tensor]:
    """O(L d³): log|det W| of each layer in float64, and by how much a rounding may change it; ``[depth]`` each."""
    values, roundings = zip(*(log_abs_det_and_rounding(layer.weight) for layer in layers), strict=True)
    return torch.stack(values), torch.stack(roundings)
