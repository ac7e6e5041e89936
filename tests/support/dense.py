"""Small networks in float64, and what curvature is measured against: dense matrices and gradients of whole layers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
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


def layers_of(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def mean_gradients(model: Any, batch: Batch, relative: bool) -> Iterator[Tensor]:
    """The mean gradient of each layer in its frame, by autograd through the whole loss: ``[out, in (+ 1)]``."""
    layers = layers_of(model)
    parameters = [p for layer in layers for p in layer.parameters()]
    found = dict(zip(map(id, parameters), torch.autograd.grad(model.loss(batch), parameters), strict=True))
    for layer in layers:
        W, b = layer.weight.detach(), layer.bias
        S = found[id(layer.weight)] @ W.T if relative else found[id(layer.weight)]
        if b is None:
            yield S
            continue
        db = found[id(b)].unsqueeze(1)
        yield torch.cat([S + db @ b.detach().unsqueeze(0) if relative else S, db], dim=1)


def in_parameters(layer: nn.Linear, D: Tensor, relative: bool) -> Tensor:
    """A change of a layer in its frame, ``[out, in (+ 1)]``, as one of its weight and bias."""
    W, b, d = layer.weight.detach(), layer.bias, layer.in_features
    if not relative:
        return D
    if b is None:
        return D @ W
    return torch.cat([D[:, :d] @ W, (D[:, :d] @ b.detach() + D[:, d]).unsqueeze(1)], dim=1)


@torch.no_grad()
def move(layer: nn.Linear, D: Tensor, rate: float) -> None:
    """Take a step of plain descent along a direction of weight and bias."""
    layer.weight -= rate * D[:, : layer.in_features]
    if layer.bias is not None:
        layer.bias -= rate * D[:, layer.in_features]


def twins(make: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """Two models of the same parameters."""
    one, other = make(), make()
    other.load_state_dict(one.state_dict())
    return one, other


def assert_alike(model: nn.Module, other: nn.Module) -> None:
    for (name, one), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10, msg=lambda said, name=name: f"{name}: {said}")


def bfgs_by_matrices(H: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """BFGS as a product of matrices."""
    one, rho = torch.eye(len(H), dtype=H.dtype), 1 / (s @ y)
    V = one - rho * torch.outer(s, y)
    return V @ H @ V.T + rho * torch.outer(s, s)
