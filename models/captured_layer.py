"""What one affine layer saw in a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepscale.models.flows.determinant import solved


class LayerIO(NamedTuple):
    """What one affine layer ``y = a Wᵀ + b`` saw in a forward and a backward pass.

    ``delta`` is the per-sample gradient at ``y`` of the loss less its log-determinants, with no 1/B, so that
    ``deltaᵀ a / B`` is that loss's gradient with respect to ``W``.
    """

    layer: nn.Linear
    a: Tensor  # [batch, dim_in]
    u: Tensor  # a Wᵀ, [batch, dim_out]; y itself where there is no bias
    y: Tensor  # [batch, dim_out]
    delta: Tensor  # [batch, dim_out]
    log_det: bool  # whether the loss holds −log|det W| besides


Tangents = list[tuple[Tensor | None, Tensor | None]]
"""A direction in the space of the parameters: (dW, db) of each captured layer; None for what is not there or frozen."""


def first_trained(layers: Iterable[nn.Module]) -> int:
    """Return the place of the first layer of which a part is trained: there a backward pass ends."""
    parts = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return parts.index(True) if any(parts) else len(parts)


def slopes(ios: list[LayerIO], tangents: Tangents) -> Tensor:
    """O(B P), and O(d³) a layer with a log-determinant: each row's loss differentiated along a direction, ``[batch]``.

    Its mean over the rows is the inner product of the gradient and the direction; no gradient is formed.

    Raises:
        FloatingPointError: a weight with a log-determinant is singular.
    """
    total = ios[0].y.new_zeros(len(ios[0].y))
    for io, (dW, db) in zip(ios, tangents, strict=True):
        if dW is not None:
            rate = io.a @ dW.T if db is None else torch.addmm(db, io.a, dW.T)
        elif db is not None:
            rate = db
        else:
            continue
        total = total + (io.delta * rate).sum(1)
        if io.log_det and dW is not None:
            total = total - solved(io.layer.weight, dW).trace()
    return total
