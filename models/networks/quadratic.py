"""A quadratic of a known condition number, on which every rate of first-order methods has a closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models.batch import Batch
from stepscale.models.objective import Objective


class Quadratic(nn.Module):
    """½ mean_n (θ − σ x_n)ᵀ H (θ − σ x_n), H of eigenvalues 1/κ … 1; O(d²), with noise O(B d²).

    θ begins at 1 in every eigenvector's direction. Without noise the rows of a batch are not looked at, and 0 is best.

    Args:
        dim: d, parameters.
        condition: κ, at least 1; the eigenvalues are spaced evenly in their logarithms.
        noise: σ, by which the rows of a batch move the optimum.
        rotated: whether H's eigenvectors are drawn, always the same; else they are the axes, which suits methods that
            scale each parameter by itself.

    Raises:
        ValueError: an argument is out of its range.
    """

    objective = Objective("negative quadratic", of_targets=True)

    def __init__(self, dim: int, condition: float = 100.0, *, noise: float = 0.0, rotated: bool = True) -> None:
        super().__init__()
        if dim < 1 or not condition >= 1 or not noise >= 0:
            given = f"dim={dim}, condition={condition}, noise={noise}"
            raise ValueError(f"a quadratic needs dim ≥ 1, condition ≥ 1 and noise ≥ 0, got {given}")
        self.noise = noise
        levels = condition ** -torch.linspace(1, 0, dim, dtype=torch.float64) if dim > 1 else torch.ones(1).double()
        draws = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        axes = torch.linalg.qr(draws).Q if rotated else torch.eye(dim, dtype=torch.float64)
        self.hessian: Tensor
        self.register_buffer("hessian", ((axes * levels) @ axes.T).to(torch.get_default_dtype()))
        self.theta = nn.Parameter(axes.sum(1).to(torch.get_default_dtype()))

    def loss(self, batch: Batch) -> Tensor:
        """The quadratic, to be made small; 0 at the optimum where there is no noise."""
        θ = self.theta
        if not self.noise:
            return 0.5 * θ @ (self.hessian @ θ)
        x = batch if isinstance(batch, Tensor) else batch[0]
        away = θ - self.noise * x
        return 0.5 * ((away @ self.hessian) * away).sum(1).mean()
