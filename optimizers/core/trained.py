"""What of a model is trained: the one place where directions and steps ask for ``requires_grad``.

A layer y = a Wᵀ + b of which a part is frozen is another layer, all of which is trained:

* with b frozen, a layer without a bias, whose output is u = a Wᵀ;
* with W frozen, a layer of weight b, ``[dim_out, 1]``, whose input is the constant 1 and which has no log-determinant.

So whatever a direction does for a layer, it does for the parameters that are free, and for nothing else.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO


class _Part(nn.Linear):
    """A layer of tensors that are there already."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = weight  # type: ignore[assignment]
        self.register_parameter("bias", None)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are to be trained.

    Raises:
        TypeError: there are none.
    """
    parameters = list(model.parameters())
    found = [parameter for parameter in parameters if parameter.requires_grad]
    if not found:
        what = "are frozen: set requires_grad_(True) on what is to be trained" if parameters else "do not exist"
        raise TypeError(f"the parameters of {type(model).__name__} {what}")
    return found


def trained(ios: list[LayerIO], needs_log_det: str | None = None) -> list[LayerIO]:
    """Return the captured layers as far as they are trained; what is frozen loses its ``.grad``, and is left out.

    Args:
        ios: as ``capture`` returns them.
        needs_log_det: what needs trained weights to have a log-determinant in the loss; None where nothing does.

    Raises:
        TypeError: two layers share a parameter, or one lacks the log-determinant.
    """
    users: dict[int, int] = {}
    found = []
    for k, io in enumerate(ios):
        W, b = io.layer.weight, io.layer.bias
        moves, shifts = W.requires_grad, b is not None and b.requires_grad
        for parameter in [W] * moves + [b] * shifts:
            if users.setdefault(id(parameter), k) != k:
                _refuse_tied(users[id(parameter)], k, parameter)
        if needs_log_det is not None and moves and not io.log_det:
            shape = f"{io.layer.out_features}×{io.layer.in_features}"
            raise TypeError(
                f"{needs_log_det} needs layers with log|det W| in the loss; this model's {shape} layer has none"
            )
        if moves and (shifts or b is None):
            found.append(io)
        elif (free := _free(io)) is not None:
            found.append(free)
    return found


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the last step's ``.grad`` to write over: fresh pages for it cost a sixth of the product they hold."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def _free(io: LayerIO) -> LayerIO | None:
    """O(B) at most: the layer that is trained of a captured one of which something is frozen, or None."""
    W, b = io.layer.weight, io.layer.bias
    for parameter in (W, b):
        if parameter is not None and not parameter.requires_grad:
            parameter.grad = None
    if W.requires_grad:
        return io._replace(layer=_Part(W), y=io.u)
    if b is None or not b.requires_grad:
        return None
    weight = b.detach().unsqueeze(1)
    weight.grad = gradient_of(b).unsqueeze(1)  # the same memory
    y = b.detach().expand_as(io.y)
    return io._replace(layer=_Part(weight), a=y.new_ones(len(y), 1), u=y, y=y, log_det=False)


def _refuse_tied(first: int, second: int, parameter: Tensor) -> NoReturn:
    """Refuse layers that share what is trained: each would write its own part of the gradient over the other's."""
    raise TypeError(
        f"captured layers {first} and {second} are tied: they share a parameter of shape "
        f"{tuple(parameter.shape)}, and a captured layer's gradient is of one use alone; "
        "use the layerwise direction, or give each layer parameters of its own"
    )
