"""A Gaussian approximation q(θ) = N(μ, Σ) of the posterior of a regression's coefficients.

With rows (x_n, y_n), u_n = θᵀ[1, x_n] and a prior N(m, v I), ``loss`` is the negative of the evidence's lower bound,

    ELBO = E_q[Σ_n log p(y_n | u_n)] + E_q[log p(θ)] − E_q[log q(θ)],

in nats, of all rows that the posterior is of. The likelihood's expectation is a mean over draws of q. The prior's and
the entropy are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import softplus

from stepscale.models.batch import Batch
from stepscale.models.choices import one_of
from stepscale.models.objective import Objective

SEED = 0  # of the points at which the bound is looked at
FREEDOM = 5  # degrees, of the proposals from which the posterior itself is drawn
CHUNK = 4_096  # of them, evaluated at once
OUTERMOST = 1e-7  # share of a normal density beyond the outermost of these points


class Likelihood(StrEnum):
    """Of a target y given u."""

    LINEAR = "linear"  # Gaussian of known variance about u
    LOGISTIC = "logistic"  # 0 or 1, with logit u
    POISSON = "poisson"  # a count, of rate exp u


class Covariance(StrEnum):
    """Of q."""

    DIAGONAL = "diagonal"
    BLOCK = "block"
    FULL = "full"


class GaussianPosterior(nn.Module):
    """q(θ) of P = dim + 1 coefficients, the first of them the intercept; ``loss`` O(looks (B P + P²)).

    Σ = L Lᵀ with a lower triangular L, whose diagonal is exp(``log_scale``); of a diagonal Σ that is all of it.

    Args:
        dim: inputs of the regression.
        likelihood: ``"linear"``, ``"logistic"``, ``"poisson"``, or a function of outputs ``[draws, B]`` and
            targets ``[B]`` that returns log p(y | u), ``[draws, B]``.
        covariance: ``"diagonal"``, ``"block"`` or ``"full"``.
        blocks: sizes of the blocks, which sum to P.
        rows: how many rows the posterior is of, for which a batch stands, ``rows`` / B times; None for the batch.
        prior_mean: m.
        prior_variance: v.
        noise: standard deviation of ``"linear"``.
        looks: points at which ``loss`` takes the expectation, always the same (scrambled Sobol points).
        scale: standard deviation of each coefficient at the start; their means start at 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        likelihood: str | Callable[[Tensor, Tensor], Tensor] = "logistic",
        *,
        covariance: str = "diagonal",
        blocks: list[int] | None = None,
        rows: int | None = None,
        prior_mean: float = 0.0,
        prior_variance: float = 1.0,
        noise: float = 1.0,
        looks: int = 256,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        positive = {"dim": dim, "prior_variance": prior_variance, "noise": noise, "looks": looks, "scale": scale}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {name}={value}")
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be at least 1, got rows={rows}")
        P = dim + 1
        self.covariance = one_of("covariance", Covariance, covariance)
        sizes = {Covariance.DIAGONAL: [1] * P, Covariance.BLOCK: blocks or [], Covariance.FULL: [P]}[self.covariance]
        if sum(sizes) != P or min(sizes) < 1 or (blocks and self.covariance is not Covariance.BLOCK):
            raise ValueError(f"covariance={covariance} of {P} coefficients cannot have blocks={blocks}")
        self.density = _density(likelihood, noise)
        self.rows, self.prior_mean, self.prior_variance = rows, prior_mean, prior_variance
        self.mean = nn.Parameter(torch.zeros(P))
        self.log_scale = nn.Parameter(torch.full((P,), math.log(scale)))
        self.below = None if self.covariance is Covariance.DIAGONAL else nn.Parameter(torch.zeros(P, P))
        inside = torch.block_diag(*(torch.ones(size, size) for size in sizes))
        self.inside: Tensor
        self.register_buffer("inside", inside)  # which entries of Σ⁻¹ may be other than 0
        points = torch.quasirandom.SobolEngine(P, scramble=True, seed=SEED).draw(looks, dtype=torch.float64)
        self.points: Tensor
        self.register_buffer("points", torch.special.ndtri(points.clamp(OUTERMOST, 1 - OUTERMOST)).to(self.mean.dtype))
        self.objective = Objective(f"ELBO at {looks} points", exact=False, of_targets=True)

    def loss(self, batch: Batch) -> Tensor:
        """O(looks (B P + P²)): −ELBO in nats."""
        L = self.factor()
        of_rows = self.log_likelihood(self.mean + self.points @ L.T, batch).mean()
        return -(of_rows + self.log_prior(L) + self.entropy())

    def factor(self) -> Tensor:
        """L, ``[P, P]``."""
        diagonal = torch.diag(self.log_scale.exp())
        return diagonal if self.below is None else diagonal + (self.below * self.inside).tril(-1)

    def log_likelihood(self, coefficients: Tensor, batch: Batch) -> Tensor:
        """O(draws B P): log p of all rows given each draw of the coefficients ``[draws, P]``, ``[draws]``."""
        x, y = self._split(batch)
        outputs = coefficients[:, 1:] @ x.T + coefficients[:, :1]
        share = 1.0 if self.rows is None else self.rows / len(x)
        return share * self.density(outputs, y.to(outputs.dtype)).sum(1)

    def log_prior(self, L: Tensor) -> Tensor:
        """O(P²): E_q[log p(θ)]."""
        squares = (self.mean - self.prior_mean).square().sum() + L.square().sum()
        return -0.5 * (squares / self.prior_variance + len(self.mean) * math.log(2 * math.pi * self.prior_variance))

    def entropy(self) -> Tensor:
        """O(P): −E_q[log q(θ)]."""
        return self.log_scale.sum() + 0.5 * len(self.mean) * math.log(2 * math.pi * math.e)

    @torch.no_grad()
    def become(self, mean: Tensor, precision: Tensor, *, remedy: str = "give one that is") -> None:
        """O(P³), of a diagonal one O(P): take this mean and this Σ⁻¹, ``[P]`` and ``[P, P]``, a diagonal one ``[P]``.

        Raises:
            FloatingPointError: Σ⁻¹ is not positive definite, or not finite; the message ends with the remedy.
        """
        if precision.ndim == 1:
            if not bool((precision > 0).all() & torch.isfinite(precision).all() & torch.isfinite(mean).all()):
                raise FloatingPointError(f"a precision of the posterior is not positive: {remedy}")
            scale = precision.rsqrt()
        else:
            # of the reversed order, so that L is lower triangular: Σ⁻¹ = L⁻ᵀ L⁻¹
            factor, failed = torch.linalg.cholesky_ex(precision.flip(0, 1))
            if bool(failed) or not bool(torch.isfinite(factor).all() & torch.isfinite(mean).all()):
                raise FloatingPointError(f"the posterior's Σ⁻¹ is not positive definite: {remedy}")
            upper = factor.flip(0, 1)  # L⁻ᵀ
            L = torch.linalg.solve_triangular(upper, torch.eye(len(mean)).to(upper), upper=True).T
            scale = L.diagonal()
            if self.below is not None:
                self.below.copy_(L.tril(-1))
        self.mean.copy_(mean)
        self.log_scale.copy_(scale.log())

    @torch.no_grad()
    def plane(self, batch: Batch, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the first two inputs' coefficients; where there is one input, of the intercept and its own."""
        places = [1, 2] if len(self.mean) > 2 else [0, 1]
        L = self.factor()
        return posterior_draws(self, batch, count)[:, places], self.mean[places], (L @ L.T)[places][:, places]

    def precision(self) -> Tensor:
        """O(P³), of a diagonal one O(P): Σ⁻¹, ``[P, P]`` or ``[P]``."""
        if self.below is None:
            return (-2 * self.log_scale).exp()
        return torch.cholesky_inverse(self.factor())

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """The outputs at the points that ``loss`` looks at, forward and back."""
        looks, P = self.points.shape
        return [(looks, P - 1, batch), (looks, batch, P - 1)]

    def _split(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Tensor):
            raise TypeError("a posterior needs rows and targets: use data=regression, or data=file with data.label")
        x, y = batch
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"a posterior of {len(x)} rows needs targets of shape ({len(x)},), got {tuple(y.shape)}: "
                "make a column targets.squeeze(1)"
            )
        return batch


def _density(likelihood: str | Callable[[Tensor, Tensor], Tensor], noise: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return log p(y | u): a function of a module, so that a model can be pickled."""
    if not isinstance(likelihood, str):
        return likelihood
    kind = one_of("likelihood", Likelihood, likelihood)
    if kind is Likelihood.LINEAR:
        return partial(_linear, noise=noise)
    return _logistic if kind is Likelihood.LOGISTIC else _poisson


def _logistic(u: Tensor, y: Tensor) -> Tensor:
    return u * y - softplus(u)


def _poisson(u: Tensor, y: Tensor) -> Tensor:
    return u * y - u.exp() - torch.lgamma(y + 1)


def _linear(u: Tensor, y: Tensor, noise: float) -> Tensor:
    return -0.5 * ((u - y) / noise).square() - 0.5 * math.log(2 * math.pi * noise**2)


def energy(model: GaussianPosterior, coefficients: Tensor, batch: Batch) -> Tensor:
    """O(B P): −log p(y, θ) but for a constant, of coefficients ``[P]``."""
    squares = (coefficients - model.prior_mean).square().sum() / (2 * model.prior_variance)
    return squares - model.log_likelihood(coefficients.unsqueeze(0), batch).squeeze(0)


def curvature(model: GaussianPosterior, batch: Batch, at: Tensor) -> Tensor:
    """O(B P²): the energy's Hessian matrix, ``[P, P]``; at the mode it is Laplace's Σ⁻¹."""
    return hessian(lambda coefficients: energy(model, coefficients, batch), at)


def newton(model: GaussianPosterior, batch: Batch, at: Tensor) -> Tensor:
    """O(B P² + P³): Newton's step of the energy from ``at``, halved until the energy does not rise, ``[P]``."""

    def of(coefficients: Tensor) -> Tensor:
        return energy(model, coefficients, batch)

    move, length = torch.linalg.solve(curvature(model, batch, at), torch.func.grad(of)(at)), 1.0
    while length > 1e-10 and of(at - length * move) > of(at):
        length /= 2
    return at - length * move


@torch.no_grad()
def posterior_draws(model: GaussianPosterior, batch: Batch, count: int, *, steps: int = 20) -> Tensor:
    """Draw from the posterior itself, which q approximates, ``[count, P]``; O(steps (B P² + P³) + 64 count B P).

    By importance: from Student's t of 5 degrees of freedom about the mode, of the Hessian's shape, drawn again by its
    weights. The fewer of the weights count, the more draws are the same.
    """
    with torch.enable_grad():
        at = model.mean.detach().clone()
        for _ in range(steps):
            at = newton(model, batch, at)
        shape = curvature(model, batch, at)
    proposal = torch.distributions.MultivariateNormal(torch.zeros_like(at), precision_matrix=shape)
    z = proposal.sample((64 * count,))
    chi = torch.distributions.Chi2(torch.tensor(float(FREEDOM)).to(at)).sample((len(z), 1)) / FREEDOM
    away = z / chi.sqrt()
    squares = ((away @ shape) * away).sum(1)
    log_proposal = -0.5 * (FREEDOM + len(at)) * torch.log1p(squares / FREEDOM)
    draws = at + away
    prior = (draws - model.prior_mean).square().sum(1) / (2 * model.prior_variance)
    log_joint = torch.cat([model.log_likelihood(part, batch) for part in draws.split(CHUNK)]) - prior
    weights = torch.softmax((log_joint - log_proposal).double(), dim=0)
    return draws[torch.multinomial(weights, count, replacement=True)]
