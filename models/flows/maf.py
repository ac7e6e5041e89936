"""A masked autoregressive flow: its Jacobians are triangular, so that no determinant is computed at all.

Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation", arXiv 1705.07057, of the
masked networks of Germain et al. 2015, arXiv 1502.03509. It is the contrast to ``Flow``: quadratic by its architecture
and not by its gradient. The price is a family of triangular Jacobians, and samples of a pass for every dimension.

Tensors are row batches, ``[batch, dim]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscale.models.objective import LogDet, Objective


class MaskedLinear(nn.Module):
    """y = x (M ∘ W)ᵀ + b, with a mask M of zeros and ones, ``[outputs, inputs]``.

    It is no ``nn.Linear``, of which directions believe that the gradient of W is δᵀx.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        layer = nn.Linear(mask.shape[1], mask.shape[0])
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.mask * self.weight, self.bias)


class Autoregression(nn.Module):
    """u_i = (x_i − μ_i) e^(−α_i), μ_i and α_i of x_1 … x_(i−1) by one masked network; starts as the identity.

    Input i has degree i, hidden unit k degree k mod (d − 1) + 1, counted from 1 and from 0. A hidden unit sees inputs
    of its own degree and below, an output hidden units below its own. Fewer hidden units than d − 1 have degrees
    ⌊k (d − 1)/h⌋ + 1, spread over all: an output then sees all inputs before it but some next to it, at most
    ⌈(d − 1)/h⌉ − 1 of them.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        inputs, k, degrees = torch.arange(1, dim + 1), torch.arange(hidden), max(1, dim - 1)
        units = (k % degrees if hidden >= degrees else k * degrees // hidden) + 1
        self.hidden = MaskedLinear(units.unsqueeze(1) >= inputs)
        self.out = MaskedLinear((inputs.unsqueeze(1) > units).repeat(2, 1))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """O(B d h): u ``[batch, dim]`` and log|det ∂u/∂x| ``[batch]``."""
        mean, log_scale = self._conditional(x)
        return (x - mean) * torch.exp(-log_scale), -log_scale.sum(-1)

    def inverse(self, u: Tensor) -> Tensor:
        """O(B d² h), d passes one after the other: the x of which u is."""
        x = torch.zeros_like(u)
        for i in range(u.shape[1]):
            mean, log_scale = self._conditional(x)
            x[:, i] = u[:, i] * torch.exp(log_scale[:, i]) + mean[:, i]
        return x

    def _conditional(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.out(torch.relu(self.hidden(x))).chunk(2, dim=-1)
        return mean, log_scale


class MAF(nn.Module):
    """Affine autoregressions, the order of the dimensions reversed between them. A step O(L B d h), no determinant.

    It offers no ``capture``: directions that need it refuse.

    Args:
        dim: width d of the data.
        depth: number L of autoregressions, each with one hidden layer.
        hidden: width h of the hidden layers; None for dim.

    Raises:
        ValueError: an argument is out of its range.
    """

    objective = Objective(log_det=LogDet.RESTRICTED)

    def __init__(self, dim: int, depth: int = 5, *, hidden: int | None = None) -> None:
        super().__init__()
        hidden = dim if hidden is None else hidden
        if dim < 1 or depth < 1 or hidden < 1:
            raise ValueError(f"dim, depth and hidden must be at least 1, got dim={dim}, depth={depth}, hidden={hidden}")
        self.dim = dim
        self.parts: Sequence[Autoregression]
        self.parts = nn.ModuleList(Autoregression(dim, hidden) for _ in range(depth))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """O(L B d h): the noise of each row of ``x``."""
        return self._with_log_det(x)[0]

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the noise, standard normal: ``[batch, dim]`` to ``[batch]``."""
        return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)

    def log_prob(self, x: Tensor) -> Tensor:
        """O(L B d h): log-likelihood of each row in nats, ``[batch]``."""
        z, log_det = self._with_log_det(x)
        return self.base_log_prob(z) + log_det

    def loss(self, batch: Tensor) -> Tensor:
        """O(L B d h): mean negative log-likelihood in nats."""
        return -self.log_prob(batch).mean()

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """O(L n d² h): ``[n, dim]`` drawn from the model, a dimension after the other."""
        some = next(self.parameters())
        return self.inverse(torch.randn(n, self.dim, device=some.device, dtype=some.dtype))

    def inverse(self, z: Tensor) -> Tensor:
        """O(L n d² h): the row of which ``z`` is the noise."""
        for part in reversed(self.parts):
            z = part.inverse(z.flip(-1))
        return z

    def _with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise ``[batch, dim]`` and log|det| ``[batch]``."""
        total = x.new_zeros(x.shape[:-1])
        for part in self.parts:
            u, log_det = part(x)
            x, total = u.flip(-1), total + log_det
        return x, total
