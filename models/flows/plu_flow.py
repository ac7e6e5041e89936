"""The flow with its weights kept factored, W = P L U: log|det W| is free, and the permutation P is fixed.

Kingma & Dhariwal 2018, "Glow: generative flow with invertible 1×1 convolutions", arXiv 1807.03039, section 3.2. It
leaves out the matrices that need another permutation: an exact gradient in a restricted family.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models.captured_layer import first_trained
from stepscale.models.flows.flow import FlowDensity
from stepscale.models.objective import LogDet, Objective


class PLULinear(nn.Module):
    """y = x Wᵀ + b, W = P L U, by two triangular products, O(B d²); no matrix W is ever formed but for ``weight``."""

    permutation: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        P, L, U = torch.linalg.lu(layer.weight.detach())
        self.register_buffer("permutation", P.argmax(dim=1))
        self.lower, self.upper = nn.Parameter(L), nn.Parameter(U)
        self.bias = layer.bias
        self.in_features = layer.in_features

    @property
    def weight(self) -> Tensor:
        """O(d³): W itself."""
        return (self._lower() @ self.upper.triu())[self.permutation]

    def forward(self, x: Tensor) -> Tensor:
        y = (x @ self.upper.triu().T @ self._lower().T)[..., self.permutation]
        return y if self.bias is None else y + self.bias

    def log_abs_det(self) -> Tensor:
        """O(d): Σ log|U_ii|."""
        return self.upper.diagonal().abs().log().sum()

    def _lower(self) -> Tensor:
        unit = self.lower.tril(-1)
        return unit + torch.eye(len(unit), dtype=unit.dtype, device=unit.device)


class PLUFlow(FlowDensity):
    """``Flow`` with weights of fixed permutations: a step O(L B d²) by autodiff, and no determinant computed.

    Its layers are no ``nn.Linear`` and it has no ``capture``: directions that need it refuse.

    Args: as ``Flow``.
    """

    objective = Objective(log_det=LogDet.RESTRICTED)

    def __init__(
        self, dim: int, depth: int = 2, *, alpha: float = 0.3, base: str = "normal", bias: bool = True
    ) -> None:
        super().__init__(dim, depth, alpha=alpha, base=base, bias=bias)
        self.layers = nn.ModuleList(PLULinear(layer) for layer in self.layers)  # type: ignore[assignment]

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """List as many as L full layers' backpropagation has: of a layer's two triangular products each is half a one.

        ``torch.mm`` knows no triangle, and does the other half as well.
        """
        dim, depth, first = self.layers[0].in_features, len(self.layers), first_trained(self.layers)
        moving = [
            all(p.requires_grad for name, p in layer.named_parameters() if name != "bias") for layer in self.layers
        ]
        return [(batch, dim, dim)] * (depth + max(0, depth - 1 - first)) + [(dim, batch, dim)] * sum(moving)

    def log_abs_det(self) -> Tensor:
        """O(L d): Σ_k log|det W_k|."""
        return torch.stack([layer.log_abs_det() for layer in self.layers]).sum()  # type: ignore[operator]
