"""Two frames for the directions that precondition a layer: where its gradient lives, and the way back.

With ȳ = [y, 1], ā = [a, 1] (without the one where the layer has no bias) and V = W⁻ᵀ, a layer's gradient is
gᵀx̄/B − [N, 0], where

* ``euclidean``: (W, b) itself, x̄ = ā and N = V;
* ``relative``: (W, b) → ((I + E) W, (I + E) b + e), x̄ = ȳ and N = I; a direction [D_E, D_e] there is
  [D_E W, D_E b + D_e] in the parameters. It takes a square layer.

N is the log-determinant's part; a layer without one in the loss has none, and its frame is the Euclidean one.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, inverse_transpose
from stepscale.optimizers.core.trained import gradient_of


class Frame(StrEnum):
    """Where a layer's gradient lives."""

    RELATIVE = "relative"
    EUCLIDEAN = "euclidean"


def inputs(io: LayerIO, relative: bool) -> Tensor:
    """O(B d): x̄, ``[batch, dim (+1)]``; a layer without a log-determinant has the Euclidean frame's."""
    x = io.y if relative and io.log_det else io.a
    return x if io.layer.bias is None else torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def log_det_gradient(layer: nn.Linear) -> Tensor:
    """O(d³): N of the Euclidean frame, W⁻ᵀ, ``[dim, dim]``."""
    return inverse_transpose(layer.weight)


def map_back(D: Tensor, layer: nn.Linear) -> Tensor:
    """O(rows · d²): rows [D_E, D_e] of the relative frame, mapped to the parameters' [D_E W, D_E b + D_e]."""
    W, b = layer.weight, layer.bias
    if b is None:
        return D @ W
    D_E, D_e = D[:, :-1], D[:, -1]
    return torch.cat([D_E @ W, torch.addmv(D_e, D_E, b).unsqueeze(1)], dim=1)


def into_frame(C: Tensor, layer: nn.Linear) -> Tensor:
    """O(rows · d²): a gradient ``[C_W, C_b]`` in the parameters, in the relative frame: [C_W Wᵀ + C_b bᵀ, C_b]."""
    W, b = layer.weight, layer.bias
    if b is None:
        return C @ W.T
    C_W, C_b = C[:, :-1], C[:, -1:]
    return torch.cat([torch.addmm(C_b * b, C_W, W.T), C_b], dim=1)


def write(layer: nn.Linear, left: Tensor, right: Tensor, less: Tensor | None) -> None:
    """O(B d²): leftᵀ right − less into ``.grad``; ``[batch, dim_out]``, ``[batch, dim_in (+1)]``, and their product's.

    Weight and bias apart, so that neither has to be copied out of a wider matrix.
    """
    width = layer.in_features
    weight = torch.mm(left.T, right[:, :width], out=gradient_of(layer.weight))
    if less is not None:
        weight.sub_(less[:, :width])
    if layer.bias is not None:
        bias = torch.mv(left.T, right[:, width], out=gradient_of(layer.bias))
        if less is not None:
            bias.sub_(less[:, width])


def write_whole(layer: nn.Linear, D: Tensor) -> None:
    """O(d²): a direction ``[dim_out, dim_in (+1)]`` into ``.grad``."""
    width = layer.in_features
    gradient_of(layer.weight).copy_(D[:, :width])
    if layer.bias is not None:
        gradient_of(layer.bias).copy_(D[:, width])


def add_whole(layer: nn.Linear, D: Tensor, times: float) -> None:
    """O(d²): add a direction ``[dim_out, dim_in (+1)]`` to ``.grad``."""
    width = layer.in_features
    gradient_of(layer.weight).add_(D[:, :width], alpha=times)
    if layer.bias is not None:
        gradient_of(layer.bias).add_(D[:, width], alpha=times)


def aligned(M: Tensor) -> Tensor:
    """O(d²): a copy of a matrix ``[rows, columns]`` that is to be added to, with rows that begin every 64 bytes.

    With a bias the rows of moments and momentum are of odd length, and products are added to rows that follow each
    other without a gap by half as slowly again.
    """
    rows, columns = M.shape
    step = 64 // M.element_size()
    return M.new_zeros(rows, math.ceil(columns / step) * step)[:, :columns].copy_(M)


def whole(W: Tensor, b: Tensor | None) -> Tensor:
    """O(d²): a layer's parameters, or what belongs to them, as one matrix ``[dim_out, dim_in (+1)]``."""
    return W if b is None else torch.cat([W, b.unsqueeze(1)], dim=1)
