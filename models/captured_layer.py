"""What one affine layer saw in a forward and a backward pass.

A layer may see several rows of one sample: tokens, positions of a convolution, uses of one weight. They stand together,
sample by sample, and ``copies`` says how many they are. A convolution is the affine layer of its unfolded patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepscale.models.flows.determinant import solved


class LayerIO(NamedTuple):
    """What one affine layer ``y = a Wᵀ + b`` saw in a forward and a backward pass.

    ``delta`` is the per-sample gradient at ``y`` of the loss less its log-determinants, with no 1/B, so that
    ``deltaᵀ a / B`` is that loss's gradient with respect to ``W``. Rows are B samples times ``copies``.
    """

    layer: nn.Linear
    a: Tensor  # [rows, dim_in]
    u: Tensor  # a Wᵀ, [rows, dim_out]; y itself where there is no bias
    y: Tensor  # [rows, dim_out]
    delta: Tensor  # [rows, dim_out]
    log_det: bool  # whether the loss holds −log|det W| besides
    copies: int = 1  # rows of each sample, one after the other

    @property
    def samples(self) -> int:
        """B."""
        return len(self.delta) // self.copies


class Part(nn.Linear):
    """An affine layer of tensors that are there already, as a part of another layer or a convolution's kernel."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = weight  # type: ignore[assignment]
        self.register_parameter("bias", bias)


Tangents = list[tuple[Tensor | None, Tensor | None]]
"""A direction in the space of the parameters: (dW, db) of each captured layer; None for what is not there or frozen."""


def first_trained(layers: Iterable[nn.Module]) -> int:
    """Return the place of the first layer of which a part is trained: there a backward pass ends."""
    parts = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return parts.index(True) if any(parts) else len(parts)


def joined(uses: list[LayerIO]) -> LayerIO:
    """O(B d): make one captured layer of several uses of it, each with the same samples: they are more copies."""
    if len(uses) == 1:
        return uses[0]
    B = uses[0].samples

    def together(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.reshape(B, -1, part.shape[1]) for part in parts], dim=1).flatten(0, 1)

    return LayerIO(
        uses[0].layer,
        a=together([use.a for use in uses]),
        u=together([use.u for use in uses]),
        y=together([use.y for use in uses]),
        delta=together([use.delta for use in uses]),
        log_det=False,
        copies=sum(use.copies for use in uses),
    )


def reduced(io: LayerIO) -> LayerIO:
    """O(B d): a layer that saw the mean of each sample's rows, and whose output's gradient is the sum of theirs."""
    if io.copies == 1:
        return io
    a, u, y, delta = (part.reshape(io.samples, io.copies, -1) for part in io[1:5])
    return io._replace(a=a.mean(1), u=u.mean(1), y=y.mean(1), delta=delta.sum(1), copies=1)


def first(io: LayerIO, share: float) -> LayerIO:
    """O(1): what a layer saw of the first samples, that share of them, rounded up."""
    rows = math.ceil(share * io.samples) * io.copies
    return io._replace(a=io.a[:rows], u=io.u[:rows], y=io.y[:rows], delta=io.delta[:rows])


def slopes(ios: list[LayerIO], tangents: Tangents) -> Tensor:
    """O(B P), and O(d³) a layer with a log-determinant: each sample's loss differentiated along a direction, ``[B]``.

    Its mean over the samples is the inner product of the gradient and the direction; no gradient is formed.

    Raises:
        FloatingPointError: a weight with a log-determinant is singular.
    """
    total = ios[0].y.new_zeros(ios[0].samples)
    for io, (dW, db) in zip(ios, tangents, strict=True):
        if dW is not None:
            rate = io.a @ dW.T if db is None else torch.addmm(db, io.a, dW.T)
        elif db is not None:
            rate = db
        else:
            continue
        rates = (io.delta * rate).sum(1)
        total = total + (rates if io.copies == 1 else rates.view(-1, io.copies).sum(1))
        if io.log_det and dW is not None:
            total = total - solved(io.layer.weight, dW).trace()
    return total
