"""Exact Euclidean gradients by automatic differentiation: the naive baseline and the honest one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from stepscale.models import Batch, HasJacobians, HasLoss, Invertible, LogDet, log_abs_det, objective_of, offers
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, Stateless, no_mark, require


class Layerwise(Stateless):
    """O(L (B d² + d³)): autodiff through ``model.loss``, on ``Flow`` one LU a layer, for value and gradient.

    The honest baseline. It needs nothing but ``loss``, so it serves any model. With ``graph`` an update may
    differentiate ``.grad`` again, to estimate a Hessian matrix; the graph lives until the next step begins.
    """

    facts = Facts(log_det=LogDet.EXACT, exact=True)

    def __init__(self, model: nn.Module, graph: bool = False) -> None:
        self.model, self.graph = require(model, HasLoss, "layerwise"), graph
        require_trained_by_loss(model)
        self.parameters = list(model.parameters())
        self.checked = False

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> Tensor:
        loss = self.model.loss(batch)
        if not self.checked:
            require_differentiable(type(self.model).__name__, loss)
            self.checked = True
        if self.graph:
            self._differentiate(loss)
        else:
            loss.backward()
        mark("gradient")
        return loss

    def _differentiate(self, loss: Tensor) -> None:
        """Write gradients that have a graph; ``backward(create_graph=True)`` would warn, and leave them in cycles."""
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient


def require_trained_by_loss(model: nn.Module) -> None:
    """Raise a ``TypeError`` where a model says that the gradient of its loss is not what trains it."""
    if not objective_of(model).differentiable:
        name = type(model).__name__
        raise TypeError(
            f"automatic differentiation needs {name}.loss to be what trains it, and {name} has an estimate of its own: "
            "use latent/estimated, latent/unit_natural or another direction that calls capture()"
        )


def require_differentiable(model: str, loss: object) -> None:
    """See that what a model calls its loss is one number that depends on what is trained.

    Raises:
        TypeError: it is not; the message names the model, what it returned and what is expected.
    """
    if not isinstance(loss, Tensor):
        found = f"a {type(loss).__name__}"
    elif loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}"
    elif not loss.requires_grad:
        found = "a tensor that depends on no parameter that is trained (detached, or made under no_grad?)"
    else:
        return
    raise TypeError(f"{model}.loss must return one number, the mean over the batch, to be differentiated; got {found}")


class Jacobian(Stateless):
    """O(B L d³) time, O(B d²) memory: autodiff through the full Jacobian and a log-determinant of every sample.

    The naive baseline: what the change of variables says, taken at its word. The Jacobians are the model's own product
    of layers where it has one (``HasJacobians``), else automatic differentiation's.
    """

    facts = Facts(log_det=LogDet.EXACT, exact=True)

    def __init__(self, model: nn.Module) -> None:
        self.model = require(model, Invertible, "jacobian")
        self.checked = False

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> Tensor:
        if not isinstance(batch, Tensor):
            raise TypeError("the jacobian direction is of the density of rows, and this batch has targets, too")
        loss, jacobians, log_dets = jacobian_loss(self.model, batch)
        if not self.checked:
            check_log_dets(jacobians.detach(), log_dets.detach())
            self.checked = True
        loss.backward()
        mark("gradient")
        return loss


def check_log_dets(matrices: Tensor, log_dets: Tensor) -> None:
    """O(B d³): hold log-determinants of a batch against those of its matrices one by one.

    After ``torch.set_num_threads`` batched LU can be silently wrong on CPU (torch 2.13: issues 141358 and 142815).

    Raises:
        RuntimeError: they differ.
    """
    single = torch.stack([torch.linalg.slogdet(matrix).logabsdet for matrix in matrices])
    if not torch.allclose(single, log_dets, rtol=1e-2, atol=1e-1, equal_nan=True):
        worst = (single - log_dets).abs().max().item()
        raise RuntimeError(f"torch's batched slogdet is off by {worst:.3g}: set threads by OMP_NUM_THREADS instead")


def jacobian_loss(model: Invertible, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean negative log-likelihood in nats, ∂z/∂x of each sample ``[batch, dim, dim]``, its log|det| ``[batch]``."""
    z, jacobians = model.jacobians(x) if offers(model, HasJacobians) else differentiated(model, x)
    log_dets = log_abs_det(jacobians)
    return -(model.base_log_prob(z) + log_dets).mean(), jacobians, log_dets


def differentiated(model: Invertible, x: Tensor) -> tuple[Tensor, Tensor]:
    """O(B L d³): the noise of each row and its ∂z/∂x, of any model."""

    def noise(row: Tensor) -> tuple[Tensor, Tensor]:
        z = model(row.unsqueeze(0)).squeeze(0)
        return z, z

    jacobians, z = vmap(jacrev(noise, has_aux=True))(x)
    return z, jacobians
