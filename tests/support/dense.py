"""Small networks in float64, and what curvature is measured against: dense matrices and gradients of whole layers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev

from stepscale.models import MLP, Autoencoder, Batch, Classifier, LayerIO
from tests.conftest import batch_of

EUCLIDEAN = {"frame": "euclidean", "statistics": "data"}

NETWORKS = {
    "tanh": (lambda: Autoencoder(5, 4, hidden=[4, 2]), "rows"),
    "relu": (lambda: Autoencoder(5, 4, hidden=[6, 3], activation="relu"), "rows"),
    "bernoulli": (lambda: Autoencoder(5, 2, hidden=[3], output="bernoulli"), "unit"),
    "classifier": (lambda: Classifier(5, 3, classes=4), "labels"),
    "no bias": (lambda: MLP([5, 3, 2], activation="tanh", output="gaussian", bias=False), "pairs"),
}


def network(name: str, rows: int = 7) -> tuple[Any, Batch]:
    """Build a float64 network with biases that are not zero, and a batch for it."""
    make, kind = NETWORKS[name]
    model = make().double()
    with torch.no_grad():
        for layer in model.layers:
            if layer.bias is not None:
                layer.bias.normal_(std=0.3)
    x = batch_of(rows)
    targets: dict[str, Batch] = {
        "rows": x,
        "unit": torch.rand_like(x),
        "labels": (x, torch.randint(0, 4, (rows,))),
        "pairs": (x, batch_of(rows, 2)),
    }
    return model, targets[kind]


def dense_fisher(model: Any, batch: Batch) -> Tensor:
    """Mean of Jᵀ H J, J of the outputs by every parameter and H the Hessian of the loss by the outputs, by autograd."""
    x, targets = (batch, batch) if isinstance(batch, Tensor) else batch
    values = {name: p.detach() for name, p in model.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(model, p, (x,)))(values)
    J = torch.cat([jacobians[name].flatten(2) for name in values], dim=2)  # [batch, outputs, P]
    total = torch.zeros(J.shape[2], J.shape[2], dtype=J.dtype)
    for k in range(len(x)):
        y = model(x[k : k + 1]).detach()
        own = targets[k : k + 1]
        H = hessian(lambda out, own=own: -model._target_log_prob(out, own).sum(), y)
        H = H.reshape(y.shape[1], y.shape[1])
        total += J[k].T @ H @ J[k] / len(x)
    return total


def homogeneous(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def layer_gradient(io: LayerIO) -> Tensor:
    """∇ of one layer, ``[out, in + 1]``."""
    gradient = io.delta.T @ homogeneous(io.a) / len(io.a)
    if io.log_det:
        gradient[:, :-1] -= torch.linalg.inv(io.layer.weight.detach()).T
    return gradient


def written(io: LayerIO) -> Tensor:
    assert io.layer.weight.grad is not None and io.layer.bias.grad is not None
    return torch.cat([io.layer.weight.grad, io.layer.bias.grad.unsqueeze(1)], dim=1)
