"""Newton's direction in the span of a few Lanczos vectors, and plain descent beside it.

The LanczosSGD of the code of Granziol, Zohren & Roberts 2020, arXiv 2006.09092; saddle-free, as Dauphin et al. 2014,
arXiv 1406.2572.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from stepscale.models import Batch, HasLoss
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require
from stepscale.optimizers.core.trained import trainable
from stepscale.optimizers.exact.autodiff import Layerwise
from stepscale.optimizers.hessian.lanczos import hessian_products, lanczos


class LanczosNewton(Stateless):
    """Write (|H| + β I)⁻¹ g on k Ritz vectors of the batch's Hessian H, and g / β on the rest; k products a step.

    The Lanczos vectors begin with g, so that all of g lies in their span, and as many of them as there are parameters
    give the exact inverse. O(k B P + k² P), and O(k L d³) on a flow.

    Args:
        model: offers ``loss``.
        damping: β.
        iterations: k.

    Raises:
        ValueError: a number is out of its range.
        TypeError: the model has no ``loss``.
    """

    def __init__(self, model: nn.Module, *, damping: float = 1.0, iterations: int = 10) -> None:
        if not damping > 0 or iterations < 1:
            raise ValueError(f"damping must be positive and iterations at least 1, got {damping} and {iterations}")
        require(model, HasLoss, type(self).__name__)
        self.model, self.damping, self.iterations = model, damping, iterations
        self.facts = replace(Layerwise.facts, exact=False)

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        gradient, times = hessian_products(self.model, batch)
        mark("gradient")
        direction = gradient / self.damping
        if bool(gradient.any()):
            found = lanczos(times, gradient, self.iterations)
            shift = 1 / (found.values.abs() + self.damping) - 1 / self.damping
            direction += found.vectors @ (shift.to(gradient.dtype) * (found.vectors.T @ gradient))
        parameters = trainable(self.model)
        parts = direction.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        mark("precondition")
