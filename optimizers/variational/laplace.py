"""Newton's method to the mode of a posterior, and Laplace's approximation there."""

from __future__ import annotations

import torch
from torch import nn

from stepscale.models import Batch, GaussianPosterior
from stepscale.models.bayes.posterior import curvature, newton
from stepscale.optimizers.core.step import Mark, Stateless, no_mark
from stepscale.optimizers.core.trained import require_all_trained


class Laplace(Stateless):
    """A Newton step of the means, and the Hessian matrix there for Σ⁻¹, or its diagonal; O(B P² + P³).

    After as many steps as Newton's method takes it is Laplace's approximation, which looks at the mode alone.

    Raises:
        TypeError: the model is no ``GaussianPosterior``, or a parameter is frozen.
        FloatingPointError: when called, and the Hessian matrix, or its diagonal, is not positive definite.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, GaussianPosterior):
            raise TypeError(f"Laplace is for GaussianPosterior (model=posterior), got {type(model).__name__}")
        require_all_trained(model, "Laplace")
        self.model = model

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        model = self.model
        require_all_trained(model, "Laplace")
        with torch.enable_grad():
            at = newton(model, batch, model.mean.detach())
            mark("precondition")
            H = curvature(model, batch, at)
        mark("statistics")
        remedy = "it is the Hessian matrix there: begin at other means, or lower prior_variance"
        model.become(at, H.diagonal() if model.below is None else H * model.inside, remedy=remedy)
        mark("update")
