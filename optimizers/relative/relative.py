"""The relative gradient: the natural direction of the affine group, at the cost of backpropagation.

Gresele, Fissore, Javaloy, Schölkopf, Hyvärinen 2020, "Relative gradient optimization of the Jacobian term in
unsupervised deep learning", NeurIPS, arXiv 2006.15090. With θ = [[W, b], [0, 1]] it is ∇θ · θᵀθ, in which the
log-determinant's −W⁻ᵀ becomes −W: no inverse and no determinant.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, LayerIO, LogDet, one_of
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require
from stepscale.optimizers.core.trained import gradient_of, trained


class Bias(StrEnum):
    """The group whose relative gradient it is (``Relative``)."""

    PLAIN = "plain"
    AFFINE = "affine"
    OFFICIAL = "official"


class Relative(Stateless):
    """O(L B d²): writes the relative gradient of an invertible model into ``.grad``.

    Example:
        >>> from stepscale.models import Flow
        >>> flow = Flow(dim=4, depth=1)
        >>> x, W = torch.randn(100, 4), flow.layers[0].weight
        >>> flow.loss(x).backward()
        >>> euclidean = W.grad.clone()
        >>> Relative(flow)(x)
        >>> torch.allclose(W.grad, euclidean @ W.T @ W, atol=1e-4)
        True

    Args:
        model: offers ``capture``; every layer square with a log|det W| in the loss.
        bias: the group whose relative gradient it is. ``"plain"``: W alone, dW = ∇W WᵀW and db = ∇b;
            ``"affine"``: W and b, the exact relative gradient in θ; ``"official"``: the authors' released code,
            whose db lacks affine's −b and so acts as a decay on b. With one of W and b frozen they are one.

    Raises:
        ValueError: unknown ``bias``.
        TypeError: the model has no ``capture``.
    """

    facts = Facts(log_det=LogDet.EXACT, writes_in_place=True)

    def __init__(self, model: nn.Module, bias: str = "plain") -> None:
        self.model = require(model, Captures, "relative")
        self.bias = one_of("bias", Bias, bias)

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        for io in trained(self.model.capture(batch), "the relative gradient"):
            write_weight_gradient(io, self.bias, gradient_of(io.layer.weight))
            if io.layer.bias is not None:
                write_bias_gradient(io, self.bias, gradient_of(io.layer.bias))
        mark("gradient")


def write_weight_gradient(io: LayerIO, bias: Bias, out: Tensor) -> None:
    """O(B d²): dW = δᵀ(v W)/B − W, ``[dim, dim]``; associated from the right, as (δᵀ v) W would be cubic.

    Without a log-determinant, as of a bias alone, it is the Euclidean δᵀa/B.
    """
    if not io.log_det:
        torch.mm(io.delta.T, io.a, out=out).mul_(1 / len(io.a))
        return
    W, v = io.layer.weight, moved(io, bias)
    torch.addmm(W, io.delta.T, v @ W, beta=-1, alpha=1 / len(v), out=out)


def moved(io: LayerIO, bias: Bias) -> Tensor:
    """Return v, ``[batch, dim]``: y − b = a Wᵀ for ``plain`` and y otherwise."""
    return io.u if bias is Bias.PLAIN else io.y


def write_bias_gradient(io: LayerIO, bias: Bias, out: Tensor) -> None:
    """O(B d): ``plain`` mean δ; ``affine`` δᵀ(1 + y b)/B − b; ``official`` the same without −b; ``[dim]``."""
    if bias is Bias.PLAIN:
        torch.mean(io.delta, 0, out=out)
        return
    rows = (io.y @ io.layer.bias).add_(1).mul_(1 / len(io.y))
    torch.addmv(io.layer.bias, io.delta.T, rows, beta=-1 if bias is Bias.AFFINE else 0, out=out)
