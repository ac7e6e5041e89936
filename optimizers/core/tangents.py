"""Algebra of directions in the space of the parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, Tangents


def gradients(layers: list[nn.Linear]) -> Tangents:
    """What a direction wrote; None for what is frozen."""
    return [(layer.weight.grad, None if layer.bias is None else layer.bias.grad) for layer in layers]


def copied(v: Tangents) -> Tangents:
    """O(P): the same direction in memory of its own."""
    return [(None if dW is None else dW.clone(), None if db is None else db.clone()) for dW, db in v]


def inner(u: Tangents, v: Tangents) -> Tensor:
    """O(P): the inner product of two directions in the space of the parameters, float64."""
    pairs = [pair for one, other in zip(u, v, strict=True) for pair in zip(one, other, strict=True)]
    sums = [(a * b).sum(dtype=torch.float64) for a, b in pairs if a is not None and b is not None]
    return torch.stack(sums).sum()


def combined(weights: Tensor, directions: list[Tangents]) -> Tangents:
    """O(P): the sum of the directions with those weights."""
    found: Tangents = []
    for layers in zip(*directions, strict=True):
        dW, db = (weighted(weights, list(parts)) for parts in zip(*layers, strict=True))
        found.append((dW, db))
    return found


def weighted(weights: Tensor, parts: list[Tensor | None]) -> Tensor | None:
    """O(P): a weighted sum of tensors of one shape, or None where there are none."""
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    total = tensors[0] * weights[0].to(tensors[0].dtype)
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total.addcmul_(tensor, weight.to(tensor.dtype))
    return total


def move(layers: list[nn.Linear], update: Tangents) -> None:
    """O(P): add an update to the parameters."""
    for layer, (dW, db) in zip(layers, update, strict=True):
        if dW is not None:
            layer.weight.add_(dW)
        if layer.bias is not None and db is not None:
            layer.bias.add_(db)


def flat(v: Tangents) -> Tensor:
    """O(P): a direction as one vector, ``[P]``, of what is not None."""
    return torch.cat([part.flatten() for pair in v for part in pair if part is not None])


def unflat(x: Tensor, layers: list[nn.Linear]) -> Tangents:
    """O(1): a vector ``[P]`` as views of a direction; None for what is frozen."""
    found: Tangents = []
    place = 0
    for layer in layers:
        pair: list[Tensor | None] = [None, None]
        for k, parameter in enumerate((layer.weight, layer.bias)):
            if parameter is not None and parameter.requires_grad:
                pair[k] = x[place : place + parameter.numel()].view(parameter.shape)
                place += parameter.numel()
        found.append((pair[0], pair[1]))
    return found


def mean_gradients(ios: list[LayerIO]) -> Tangents:
    """O(B P): δᵀa / B and the mean of δ of each layer, of a loss without log-determinants; None for what is frozen."""
    return [_moving(io.layer, io.delta.T @ io.a / io.samples, io.delta.sum(0) / io.samples) for io in ios]


def squares(ios: list[LayerIO]) -> Tangents:
    """O(B P): the mean of the squares of each sample's gradient, by parameter; None for what is frozen."""
    return mean_gradients([io._replace(a=io.a.square(), delta=io.delta.square()) for io in ios])


def _moving(layer: nn.Linear, dW: Tensor, db: Tensor) -> tuple[Tensor | None, Tensor | None]:
    shifts = layer.bias is not None and layer.bias.requires_grad
    return (dW if layer.weight.requires_grad else None), (db if shifts else None)
