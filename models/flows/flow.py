"""A deep invertible network trained by exact maximum likelihood.

``z_0 = x``, ``y_k = W_k z_{k-1} + b_k``, ``z_k = σ(y_k)`` for k < L, and the last layer is affine (Gresele et al. 2020,
"Relative gradient optimization of the Jacobian term in unsupervised deep learning", arXiv 2006.15090).

log p(x) = log p_base(y_L) + Σ_{k<L} Σ_i log σ′(y_k,i) + Σ_k log|det W_k|: a part that costs O(L B d²) and a part,
kept apart from it in every method here, that costs O(L d³).

Tensors are row batches, ``[batch, dim]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stepscale.models.captured_layer import LayerIO, Tangents, first_trained, slopes
from stepscale.models.choices import one_of
from stepscale.models.flows.determinant import factored, log_abs_det
from stepscale.models.objective import Objective

QR_LIMIT = 1024  # widest layer whose initial weights come from a QR, which is cubic
REFLECTIONS = 32
NEWTON_STEPS = 10


class Base(StrEnum):
    """Density of the noise, standard."""

    NORMAL = "normal"
    LOGISTIC = "logistic"


class FlowDensity(nn.Module):
    """Invertible multilayer perceptron with square layers: its density, which autodiff alone can train.

    Example:
        >>> flow = FlowDensity(dim=4, depth=2)
        >>> x = torch.randn(10, 4)
        >>> flow(x).shape, flow.log_prob(x).shape
        (torch.Size([10, 4]), torch.Size([10]))
        >>> torch.isclose(flow.loss(x), -flow.log_prob(x).mean())
        tensor(True)

    Args:
        dim: width d of the data and of every layer.
        depth: number L of affine layers.
        alpha: slope of σ at minus infinity, σ(y) = α y + (1 − α) log(1 + eʸ); in (0, 1].
        base: density of the noise, ``"normal"`` or ``"logistic"``, both standard.
        bias: whether the affine layers have one.
        recompute: whether autograd keeps a layer's input alone and computes the rest of it again in the backward pass
            (activation checkpointing), in about a quarter of the memory. ``capture`` keeps all that it returns.

    Raises:
        ValueError: an argument is out of its range.
    """

    objective = Objective()

    def __init__(
        self,
        dim: int,
        depth: int = 2,
        *,
        alpha: float = 0.3,
        base: str = "normal",
        bias: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or depth < 1:
            raise ValueError(f"dim and depth must be at least 1, got dim={dim}, depth={depth}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        self.alpha, self.base, self.recompute = alpha, one_of("base", Base, base), recompute
        self.layers: Sequence[nn.Linear]
        self.layers = nn.ModuleList(nn.Linear(dim, dim, bias=bias) for _ in range(depth))  # type: ignore[assignment]
        for layer in self.layers:
            initialise(layer)

    def forward(self, x: Tensor) -> Tensor:
        """O(L B d²): the noise of each row of ``x``."""
        return self.layers[-1](self._hidden(x)[0])

    def inverse(self, z: Tensor) -> Tensor:
        """O(L (B d² + d³)): the row of which ``z`` is the noise; one LU a layer, Newton's method for σ⁻¹.

        Raises:
            FloatingPointError: a weight is singular.
        """
        for k, layer in reversed(list(enumerate(self.layers))):
            y = z if k == len(self.layers) - 1 else self._activation_inverse(z)
            shifted = y if layer.bias is None else y - layer.bias
            lu, pivots = factored(layer.weight)
            z = torch.linalg.lu_solve(lu, pivots, shifted, left=False, adjoint=True)
        return z

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """O(L (n d² + d³)): ``[n, dim]`` drawn from the model."""
        weight = self.layers[0].weight
        noise = torch.randn(n, weight.shape[1], device=weight.device, dtype=weight.dtype)
        if self.base is Base.LOGISTIC:
            noise = torch.logit(torch.rand_like(noise).clamp_(min=torch.finfo(noise.dtype).tiny))
        return self.inverse(noise)

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the noise, summed over units: ``[batch, dim]`` to ``[batch]``."""
        if self.base is Base.NORMAL:
            return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return -2 * torch.logaddexp(z / 2, -z / 2).sum(1)

    def log_prob_without_det(self, x: Tensor) -> Tensor:
        """O(L B d²): log p(x) less Σ log|det W_k|, ``[batch]``."""
        z, slopes = self._hidden(x)
        return self.base_log_prob(self.layers[-1](z)) + slopes

    def log_abs_det(self) -> Tensor:
        """O(L d³): Σ_k log|det W_k|, one LU a layer, so that no batched one is called."""
        return torch.stack([log_abs_det(layer.weight) for layer in self.layers]).sum()

    def jacobians(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """O(B L d³): the noise of each row, ``[batch, dim]``, and its ∂z/∂x, ``[batch, dim, dim]``.

        A product of layers from the last to the first, each of one weight and all rows.
        """
        layers, slopes = list(self.layers), []
        for layer in layers[:-1]:
            y = layer(x)
            slopes.append(self.alpha + (1 - self.alpha) * torch.sigmoid(y))
            x = self._activation(y)
        jacobian = layers[-1].weight.expand(len(x), -1, -1)
        for layer, slope in zip(reversed(layers[:-1]), reversed(slopes), strict=True):
            jacobian = (jacobian * slope.unsqueeze(1)) @ layer.weight
        return layers[-1](x), jacobian

    def log_prob(self, x: Tensor) -> Tensor:
        """O(L (B d² + d³)): log-likelihood of each row in nats, ``[batch]``."""
        return self.log_prob_without_det(x) + self.log_abs_det()

    def loss(self, batch: Tensor) -> Tensor:
        """O(L (B d² + d³)): mean negative log-likelihood in nats."""
        return -self.log_prob(batch).mean()

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """List the products of the least exact step known, a relative one: dW = δᵀ(u W)/B − W, u = a Wᵀ.

        L go forward and L weigh the rows, ``[d, B] × [B, d]``. Between them, u_k W_k and δ_k W_k share W_k: stacked,
        they are one product of 2B rows, which runs faster than two; the first layer sends no δ back. With more rows
        than ``dim``, (δᵀu) W is less work, and u W falls away. A frozen weight has neither, and δ goes no further back
        than to the first layer that is trained.
        """
        dim, depth, first = self.layers[0].in_features, len(self.layers), first_trained(self.layers)
        moving = [layer.weight.requires_grad for layer in self.layers]
        forward, weighed = [(batch, dim, dim)] * depth, [(dim, batch, dim)] * sum(moving)
        if batch > dim:
            return forward + [(batch, dim, dim)] * max(0, depth - 1 - first) + weighed + [(dim, dim, dim)] * sum(moving)
        rows = [batch * (moving[k] + (k > first)) for k in reversed(range(depth))]
        return forward + [(n, dim, dim) for n in rows if n] + weighed

    def _hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden layer ``[batch, dim]`` and Σ_{k<L} Σ_i log σ′(y_k,i) ``[batch]``."""
        slopes = x.new_zeros(x.shape[0]) if x.ndim == 2 else x.new_zeros(())
        through = self._through
        if self.recompute:
            through = partial(checkpoint, through, use_reentrant=False, preserve_rng_state=False)
        for layer in self.layers[:-1]:
            x, slope = through(layer, x)
            slopes = slopes + slope
        return x, slopes

    def _through(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """A hidden layer's output ``[batch, dim]`` and Σ_i log σ′(y_i) ``[batch]``."""
        y = layer(x)
        slopes = self._log_slopes(y)  # first: what it makes is gone by the time that the output is made
        return self._activation(y), slopes

    def _log_slopes(self, y: Tensor) -> Tensor:
        """Σ_i log σ′(y_i), ``[batch]``."""
        return torch.log(self.alpha + (1 - self.alpha) * torch.sigmoid(y)).sum(-1)

    def _activation(self, y: Tensor) -> Tensor:
        # softplus(y) = y − log σ(y), at half of logaddexp's cost; F.softplus is the identity above 20, which stalls σ⁻¹
        return torch.sub(y, nn.functional.logsigmoid(y), alpha=1 - self.alpha)

    def _activation_inverse(self, z: Tensor) -> Tensor:
        """σ⁻¹ by Newton's method: σ is convex, increasing and onto, so it converges from either start."""
        y = torch.where(z > 0, z - 0.3, z / self.alpha)
        for _ in range(NEWTON_STEPS):
            slope = self.alpha + (1 - self.alpha) * torch.sigmoid(y)
            y = y - (self._activation(y) - z) / slope
        return y


class Flow(FlowDensity):
    """Invertible multilayer perceptron whose layers can be captured, which opens it to every direction.

    Args, Raises: as ``FlowDensity``.
    """

    def captured_log_prob(self, ios: list[LayerIO]) -> Tensor:
        """O(L B d): ``log_prob_without_det`` of a captured batch, whose products are done."""
        return self.base_log_prob(ios[-1].y) + sum(self._log_slopes(io.y) for io in ios[:-1])

    @torch.no_grad()
    def capture(self, batch: Tensor) -> list[LayerIO]:
        """O(L B d²): 2L − 1 products and no determinant.

        The backward pass is written out, δ_k = (δ_{k+1} W_{k+1}) σ′(y_k) − ∂ log σ′(y_k): the loss's value, which
        autograd would compute, is nowhere needed.
        """
        layers, seen, z = list(self.layers), [], batch
        weights = [layer.weight for layer in layers]
        for k, (layer, W) in enumerate(zip(layers, weights, strict=True)):  # by its place: a layer may be there twice
            u, b = z @ W.T, layer.bias
            y = u if b is None else u + b
            seen.append((layer, z, u, y))
            if k < len(layers) - 1:
                z = self._activation(y)
        delta = y if self.base is Base.NORMAL else torch.tanh(y / 2)
        deltas = [delta]
        for k in range(len(layers) - 2, -1, -1):
            s = torch.sigmoid(seen[k][3])
            slope = torch.rsub(s, self.alpha, alpha=self.alpha - 1)  # σ′ = α + (1 − α) s
            delta = (delta @ weights[k + 1]).mul_(slope)
            delta.addcdiv_(s.addcmul_(s, s, value=-1), slope, value=self.alpha - 1)
            deltas.append(delta)
        return [LayerIO(*io, delta, log_det=True) for io, delta in zip(seen, reversed(deltas), strict=True)]

    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        """O(L (B d² + d³)): as many rows drawn from the model, captured."""
        return self.capture(self.sample(len(ios[0].a)))

    @torch.no_grad()
    def fisher_roots(self, ios: list[LayerIO], directions: Sequence[Tangents]) -> list[Tensor]:
        """O(L (B d² + d³)): scores of as many rows drawn from the model, times each direction, ``[batch]``."""
        samples = self.capture_samples(ios)
        return [slopes(samples, tangents) for tangents in directions]

    @torch.no_grad()
    def fisher_times(self, samples: list[LayerIO], tangents: Tangents) -> list[LayerIO]:
        """O(L B d²): F v with F the covariance of the samples' scores.

        Their expectation is 0, and the log-determinant's part is the same in all of them: it leaves with the mean.
        """
        free = [io._replace(log_det=False) for io in samples]
        scores = slopes(free, tangents)
        weights = (scores - scores.mean()).unsqueeze(1)
        return [io._replace(delta=io.delta * weights) for io in free]


def initialise(layer: nn.Linear) -> None:
    """Set an orthogonal weight and a zero bias.

    O(d³) by QR up to ``QR_LIMIT``; beyond, O(d²) as a product of random Householder reflections, which is exactly
    orthogonal too, though not uniformly distributed.
    """
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if layer.weight.shape[0] <= QR_LIMIT:
        nn.init.orthogonal_(layer.weight)
        return
    with torch.no_grad():
        nn.init.eye_(layer.weight)
        v = layer.weight.new_empty(len(layer.weight), REFLECTIONS).normal_()
        layer.weight.addmm_(*reflections(nn.functional.normalize(v, dim=0)), alpha=-1)


def reflections(v: Tensor) -> tuple[Tensor, Tensor]:
    """O(d k²): factors F ``[dim, k]`` and Vᵀ with I − F Vᵀ the product H_k … H_1 of reflections at unit vectors.

    ``v`` is ``[dim, k]``, a vector a column. The compact form of Schreiber & Van Loan 1989: one product in place of k
    passes over a matrix, each a vector's product, at which CUDA fails from 2³² numbers on (pytorch issue 17897).
    """
    one = torch.eye(v.shape[1], device=v.device, dtype=v.dtype)
    return v @ torch.linalg.solve_triangular(torch.tril(v.T @ v, -1) + one / 2, one, upper=False), v.T
