"""The restricted problem: a model of which some parameters are frozen, in coordinates of the others, by autograd.

A layer's free coordinates are D, ``[out, width]``: E and e where W → (I + E) W (``relative``) or W + E, and b → b + e;
in the affine group b → (I + E) b + e, if it is free.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stepscale.models import Batch, LayerIO, each, rows_of


class _Loss(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.model.loss(batch)
        return loss


class Free(NamedTuple):
    """What of a layer is free."""

    name: str  # of the layer, in its model
    W: Tensor
    b: Tensor
    weight_free: bool
    bias_free: bool

    @property
    def width(self) -> int:
        return self.W.shape[1] * self.weight_free + self.bias_free

    def moved(self, D: Tensor, relative: bool, affine: bool = True) -> tuple[Tensor, Tensor]:
        """(ΔW, Δb) of a direction D; what is frozen does not move."""
        E, d = D[:, : self.W.shape[1] * self.weight_free], self.W.shape[1]
        dW = (E @ self.W if relative else E) if self.weight_free else torch.zeros_like(self.W)
        db = D[:, -1] if self.bias_free else torch.zeros_like(self.b)
        if relative and affine and self.weight_free and self.bias_free:
            db = db + E[:, :d] @ self.b
        return dW, db

    def inputs(self, io: LayerIO, relative: bool) -> Tensor:
        """x̄ with which δᵀx̄/B is the gradient in these coordinates but for the log-determinant's part."""
        one = torch.ones(len(io.a), 1, dtype=io.a.dtype)
        if not self.weight_free:
            return one
        x = io.a
        if relative:
            x = io.a @ self.W.T + (self.b if self.bias_free else 0)
        return torch.cat([x, one], dim=1) if self.bias_free else x


def free_layers(model: Any) -> list[Free]:
    """Of those that have a free part."""
    layers = [
        Free(
            f"model.layers.{k}",
            layer.weight.detach(),
            layer.bias.detach(),
            *(p.requires_grad for p in (layer.weight, layer.bias)),
        )
        for k, layer in enumerate(model.layers)
    ]
    return [layer for layer in layers if layer.width]


def scores(model: Any, batch: Batch, relative: bool, affine: bool = True) -> list[Tensor]:
    """Each free layer's scores, ``[batch, out · width]``, of each row's loss."""
    layers, loss = free_layers(model), _Loss(model)
    found: list[list[Tensor]] = []
    for row in range(rows_of(batch)):
        coordinates = [torch.zeros(len(free.W), free.width, dtype=free.W.dtype, requires_grad=True) for free in layers]
        there = {}
        for free, D in zip(layers, coordinates, strict=True):
            dW, db = free.moved(D, relative, affine)
            there |= {f"{free.name}.weight": free.W + dW, f"{free.name}.bias": free.b + db}
        value = functional_call(loss, there, (each(batch, lambda part: part[row : row + 1]),))  # noqa: B023
        found.append([part.flatten() for part in torch.autograd.grad(value, coordinates)])
    return [torch.stack(parts) for parts in zip(*found, strict=True)]
