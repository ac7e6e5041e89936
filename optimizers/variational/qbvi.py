"""Quasi black-box variational inference: natural gradients of a Gaussian posterior, without any gradient of the model.

Magris, Shabani & Iosifidis 2022, arXiv 2205.11568. With f = log p(y | θ) at draws θ = μ + e of q = N(μ, S⁻¹), and the
prior N(m, v I) by its closed form, the gradients in the mean parameters are

    ∇_μ = (m − μ) / v + S E[e f],   ∇_S = I / v − S + E[(S − S e eᵀ S) f],

which are natural gradients in the natural ones: S ← S + β ∇_S, then μ ← μ + β S⁻¹ ∇_μ. Where the likelihood is
Gaussian, one such step with exact expectations and β = 1 is the posterior.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepscale.models import Batch, GaussianPosterior
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, StateDict, Stateless, no_mark
from stepscale.optimizers.core.trained import require_all_trained


class Natural(NamedTuple):
    """∇_μ and ∇_S; of a diagonal S its diagonal."""

    mean: Tensor  # [P]
    precision: Tensor  # [P], or [P, P]

    def norm(self) -> Tensor:
        return torch.sqrt(self.mean.square().sum() + self.precision.square().sum())

    def times(self, factor: Tensor | float) -> Natural:
        return Natural(self.mean * factor, self.precision * factor)

    def plus(self, other: Natural) -> Natural:
        return Natural(self.mean + other.mean, self.precision + other.precision)


class QBVI:
    """Natural steps of a posterior from values of its likelihood alone; O(S (B P + P²) + P³), diagonal O(S B P).

    Args:
        model: a ``GaussianPosterior``.
        samples: S, draws a step, at least 2.
        lr: β₀.
        steady: τ, steps after which β falls as β₀ τ / t.
        retraction: ξ of S ← S exp(β/ξ · S⁻¹ ∇_S), element by element, which keeps a diagonal S positive; of a matrix
            any ξ above 0 stands for S + β ∇ + β²/2 ∇ S⁻¹ ∇, which stays positive definite. 0 for S + β ∇.
        momentum: share of the last direction that is kept.
        control: whether f is taken less c, the coefficient of its regression on the score, of the step before. Without
            it the variance grows as f², and the logistic regression of the paper diverges.
        first_clip: longest estimate of the expectations in the first step, in which c is not known yet.
        clip: longest ∇ of the first step and of later ones, both parts together.

    Raises:
        ValueError: a number is out of its range.
        TypeError: the model is no ``GaussianPosterior``, or a parameter is frozen.
        FloatingPointError: when called, and S is no longer positive definite.
    """

    facts = Facts()

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int = 25,
        lr: float = 0.08,
        steady: int = 1000,
        retraction: float = 4.0,
        momentum: float = 0.4,
        control: bool = True,
        first_clip: float = 10.0,
        clip: tuple[float, float] = (100.0, 5000.0),
    ) -> None:
        if not isinstance(model, GaussianPosterior):
            raise TypeError(f"QBVI is for GaussianPosterior (model=posterior), got {type(model).__name__}")
        if samples < 2 or not lr > 0 or steady < 1 or retraction < 0 or not 0 <= momentum < 1:
            given = f"samples={samples}, lr={lr}, steady={steady}, retraction={retraction}, momentum={momentum}"
            raise ValueError(
                f"QBVI needs samples ≥ 2, lr > 0, steady ≥ 1, retraction ≥ 0, 0 ≤ momentum < 1, got {given}"
            )
        if len(clip) != 2 or not min(first_clip, *clip) > 0:
            raise ValueError(
                f"clip must be two lengths above 0, and first_clip one, got clip={list(clip)}, first_clip={first_clip}"
            )
        require_all_trained(model, "QBVI")
        self.model, self.samples, self.lr, self.steady, self.retraction = model, samples, lr, steady, retraction
        self.momentum, self.control, self.first_clip, self.clip = momentum, control, first_clip, tuple(clip)
        self.taken = 0
        self.direction: Natural | None = None
        self.coefficients: Natural | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        model = self.model
        require_all_trained(model, "QBVI")
        S, mean = model.precision(), model.mean
        e = torch.randn(self.samples, len(mean), dtype=mean.dtype, device=mean.device) @ model.factor().T
        f = model.log_likelihood(mean + e, batch)
        mark("likelihood")
        expected, coefficients = estimates(e, f, S, self.coefficients if self.control else None, model.inside)
        self.coefficients = coefficients if self.control else None
        if self.taken == 0:
            expected = shortened(expected, self.first_clip)
        found = shortened(
            with_prior(expected, mean, S, model.prior_mean, model.prior_variance), self.clip[self.taken > 0]
        )
        kept = self.direction
        if kept is not None:
            found = kept.times(self.momentum).plus(found.times(1 - self.momentum))
        self.direction = found
        self.taken += 1
        rate = self.lr * min(1.0, self.steady / self.taken)
        mark("gradient")
        model.become(*natural_step(mean, S, found, rate, self.retraction), remedy="lower lr or raise retraction")
        mark("update")

    def state_dict(self) -> StateDict:
        return {"taken": self.taken, "direction": self.direction, "coefficients": self.coefficients}

    def load_state_dict(self, state: StateDict) -> None:
        self.taken = state["taken"]
        self.direction, self.coefficients = (
            None if state[name] is None else Natural(*state[name]) for name in ("direction", "coefficients")
        )


class ScoreGradient(Stateless):
    """The gradient of a diagonal posterior from values of its likelihood alone; O(S B P), S draws a step.

    Black-box variational inference (Ranganath, Gerrish & Blei 2014, arXiv 1401.0118): the same estimates as ``QBVI``'s,
    in the means and the logarithms of the scales, for any update; f is taken less its mean.

    Raises:
        ValueError: ``samples`` is below 2.
        TypeError: the model is no ``GaussianPosterior`` of a diagonal covariance.
    """

    facts = Facts()

    def __init__(self, model: nn.Module, *, samples: int = 25) -> None:
        if not isinstance(model, GaussianPosterior) or model.below is not None:
            raise TypeError("the score gradient is for GaussianPosterior (model=posterior) with covariance=diagonal")
        if samples < 2:
            raise ValueError(f"samples must be at least 2, got samples={samples}")
        self.model, self.samples = model, samples

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        model, S = self.model, self.model.precision()
        e = torch.randn(self.samples, len(S), dtype=S.dtype, device=S.device) / S.sqrt()
        f = model.log_likelihood(model.mean + e, batch)
        centred = (f - f.mean()) * (self.samples / (self.samples - 1))
        expected, _ = estimates(e, centred, S, None, model.inside)
        slope = with_prior(expected, model.mean, S, model.prior_mean, model.prior_variance)
        for parameter, gradient in ((model.mean, -slope.mean), (model.log_scale, slope.precision / S)):
            parameter.grad = gradient if parameter.requires_grad else None
        mark("gradient")


def estimates(e: Tensor, f: Tensor, S: Tensor, less: Natural | None, inside: Tensor) -> tuple[Natural, Natural]:
    """O(S P), of a matrix O(S P²): E[e f] and E[(S − S e eᵀ S) f], and the coefficients of their control variates.

    Args:
        e: draws less their mean, ``[draws, P]``.
        f: log-likelihood at the draws, ``[draws]``.
        S: the precision, ``[P]`` or ``[P, P]``.
        less: c, which each entry's f is taken less; None for 0.
        inside: which entries of S may be other than 0, ``[P, P]``.
    """
    if S.ndim == 1:
        scores = Natural(e, S - (S * e).square())
    else:
        w = e @ S
        scores = Natural(e, (S - w.unsqueeze(2) * w.unsqueeze(1)) * inside)
    parts, coefficients = [], []
    for k, B in enumerate(scores):
        values = f.view(-1, *[1] * (B.ndim - 1))
        A = B * values
        parts.append(A.mean(0) if less is None else (B * (values - less[k])).mean(0))
        covariance = (A * B).mean(0) - A.mean(0) * B.mean(0)
        variance = (B - B.mean(0)).square().mean(0)
        coefficients.append(
            torch.where(variance > 0, covariance / variance.clamp_min(1e-30), torch.zeros_like(variance))
        )
    return Natural(*parts), Natural(*coefficients)


def with_prior(expected: Natural, mean: Tensor, S: Tensor, prior_mean: float, prior_variance: float) -> Natural:
    """O(P), of a matrix O(P²): ∇_μ and ∇_S from the likelihood's part."""
    if S.ndim == 1:
        of_mean, one = S * expected.mean, torch.ones_like(mean)
    else:
        of_mean, one = S @ expected.mean, torch.eye(len(mean), dtype=S.dtype, device=S.device)
    return Natural((prior_mean - mean) / prior_variance + of_mean, one / prior_variance - S + expected.precision)


def natural_step(mean: Tensor, S: Tensor, slope: Natural, rate: float, retraction: float) -> tuple[Tensor, Tensor]:
    """O(P³), of a diagonal O(P): the next μ and S; the mean moves by the new S."""
    if S.ndim == 1:
        moved = S * torch.exp(rate / retraction * slope.precision / S) if retraction else S + rate * slope.precision
        return mean + rate * slope.mean / moved, moved
    moved = S + rate * slope.precision
    if retraction:
        moved = moved + rate**2 / 2 * slope.precision @ torch.linalg.solve(S, slope.precision)
    return mean + rate * torch.linalg.solve(moved, slope.mean), moved


def shortened(slope: Natural, longest: float) -> Natural:
    """O(P), of a matrix O(P²): the same direction, at most so long."""
    return slope.times((longest / slope.norm().clamp_min(1e-30)).clamp(max=1.0))
