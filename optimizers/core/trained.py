"""What of a model is trained: the one place where directions and steps ask for ``requires_grad``.

A layer y = a Wᵀ + b of which a part is frozen is another layer, all of which is trained:

* with b frozen, a layer without a bias, whose output is u = a Wᵀ;
* with W frozen, a layer of weight b, ``[dim_out, 1]``, whose input is the constant 1 and which has no log-determinant.

So whatever a direction does for a layer, it does for the parameters that are free, and for nothing else. A weight that
several layers have is one layer's, which sees the rows of them all; so is a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO, Part, joined, require_rows


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


def require_all_trained(model: nn.Module, what: str) -> None:
    """See that nothing of a model is frozen, for what moves all of it or nothing.

    Raises:
        TypeError: something is; the message names it.
    """
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise TypeError(
            f"{what} moves all of {type(model).__name__} or nothing, and {' and '.join(frozen)} cannot move: "
            "set requires_grad_(True), or use the layerwise direction"
        )


def trained(ios: list[LayerIO], needs_log_det: str | None = None, *, shared: bool = False) -> list[LayerIO]:
    """Return the captured layers as far as they are trained; what is frozen loses its ``.grad``, and is left out.

    Args:
        ios: as ``capture`` returns them.
        needs_log_det: what needs trained weights to have a log-determinant in the loss; None where nothing does.
        shared: whether several rows of a sample may have one weight; those of its uses are then joined.

    Raises:
        ValueError: the batch has no rows.
        TypeError: two layers share a parameter, or a layer sees several rows a sample, and they may not; or one lacks
            the log-determinant.
    """
    if ios:
        require_rows(len(ios[0].delta))
    there = [p for io in ios for p in (io.layer.weight, io.layer.bias) if p is not None]
    plain = all(io.copies == 1 and (io.log_det or needs_log_det is None) for io in ios)
    if plain and all(p.requires_grad for p in there) and len({id(p) for p in there}) == len(there):
        return ios  # as nearly always; what follows shows in a small step
    users: dict[int, list[int]] = {}
    for k, io in enumerate(ios):
        free = [p for p in (io.layer.weight, io.layer.bias) if p is not None and p.requires_grad]
        for parameter in free:
            users.setdefault(id(parameter), []).append(k)
            first = users[id(parameter)][0]
            if first != k and (not shared or io.log_det):
                _refuse_tied(first, k, parameter)
        if needs_log_det is not None and io.layer.weight.requires_grad and not io.log_det:
            shape = f"{io.layer.out_features}×{io.layer.in_features}"
            raise TypeError(
                f"{needs_log_det} needs layers with log|det W| in the loss; this model's {shape} layer has none"
            )
        if free and io.copies > 1 and (not shared or io.log_det):
            _refuse_copies(k, io)
    parts = [part for io in ios for part in _parts(io, users)]
    uses: dict[tuple[int, ...], list[LayerIO]] = {}
    for key, part in parts:
        uses.setdefault(key, []).append(part)
    return [joined(same) for same in uses.values()]


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the last step's ``.grad`` to write over: fresh pages for it cost a sixth of the product they hold."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def _parts(io: LayerIO, users: dict[int, list[int]]) -> Iterator[tuple[tuple[int, ...], LayerIO]]:
    """O(B) at most: the layers that are trained of a captured one, each with what names its parameters.

    They are the layer itself, or, where something is frozen or used without the other, its weight and its bias apart.
    """
    W, b = io.layer.weight, io.layer.bias
    for parameter in (W, b):
        if parameter is not None and not parameter.requires_grad:
            parameter.grad = None
    moves, shifts = W.requires_grad, b is not None and b.requires_grad
    if b is not None and moves and shifts and users[id(W)] == users[id(b)]:
        yield (id(W), id(b)), io
        return
    if moves:
        yield (id(W),), io if b is None else io._replace(layer=Part(W), y=io.u)
    if b is not None and shifts:
        weight = b.detach().unsqueeze(1)
        weight.grad = gradient_of(b).unsqueeze(1)  # the same memory
        y = b.detach().expand_as(io.y)
        yield (id(b),), io._replace(layer=Part(weight), a=y.new_ones(len(y), 1), u=y, y=y, log_det=False)


def _refuse_copies(place: int, io: LayerIO) -> NoReturn:
    """Refuse a layer whose rows are not the samples."""
    raise TypeError(
        f"captured layer {place}, {io.layer.out_features}×{io.layer.in_features}, sees {io.copies} rows a sample "
        "(tokens, uses), and this direction takes one: use KFAC, another of the Kronecker family, KBFGS, KLDWRM or the "
        "layerwise direction"
    )


def _refuse_tied(first: int, second: int, parameter: Tensor) -> NoReturn:
    """Refuse layers that share what is trained: each would write its own part of the gradient over the other's."""
    raise TypeError(
        f"captured layers {first} and {second} are tied: they share a parameter of shape "
        f"{tuple(parameter.shape)}, and a captured layer's gradient is of one use alone; "
        "use the layerwise direction, or give each layer parameters of its own"
    )
