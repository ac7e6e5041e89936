"""Algebra of directions in the space of the parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import Tangents


def gradients(layers: list[nn.Linear]) -> Tangents:
    """What a direction wrote."""
    found: Tangents = []
    for layer in layers:
        assert layer.weight.grad is not None
        found.append((layer.weight.grad, None if layer.bias is None else layer.bias.grad))
    return found


def inner(u: Tangents, v: Tangents) -> Tensor:
    """O(P): the inner product of two directions in the space of the parameters, float64."""
    total = sum((one * other).sum(dtype=torch.float64) for (one, _), (other, _) in zip(u, v, strict=True))
    biases = [
        (one * other).sum(dtype=torch.float64)
        for (_, one), (_, other) in zip(u, v, strict=True)
        if one is not None and other is not None
    ]
    return torch.as_tensor(total) + sum(biases)


def combined(weights: Tensor, directions: list[Tangents]) -> Tangents:
    """O(P): the sum of the directions with those weights."""
    found: Tangents = []
    for parts in zip(*directions, strict=True):
        biases = [db for _, db in parts if db is not None]
        dW = weighted(weights, [dW for dW, _ in parts])
        found.append((dW, weighted(weights, biases) if biases else None))
    return found


def weighted(weights: Tensor, tensors: list[Tensor]) -> Tensor:
    """O(P): a weighted sum of tensors of one shape."""
    total = tensors[0] * weights[0].to(tensors[0].dtype)
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total.addcmul_(tensor, weight.to(tensor.dtype))
    return total


def move(layers: list[nn.Linear], update: Tangents) -> None:
    """O(P): add an update to the parameters."""
    for layer, (dW, db) in zip(layers, update, strict=True):
        layer.weight.add_(dW)
        if layer.bias is not None and db is not None:
            layer.bias.add_(db)
