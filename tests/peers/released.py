"""The relative gradient as its authors compute it, written anew from what their code does.

Gresele et al. 2020 released a torch notebook and JAX code (github.com/fissoreg/relative-gradient-jacobian). Both let
automatic differentiation find the error at each layer's output, and with it a gradient of W which nothing uses; both
differentiate the activation automatically where its derivative has a closed form, and update by Adam.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from stepscale.models import Batch, Flow, LogDet
from stepscale.optimizers import Facts, Mark, Stateless, no_mark

BETAS, EPS = (0.9, 0.999), 1e-8


class Notebook(Stateless):
    """O(L B d²): the torch notebook's direction, for a flow of normal base and with biases; ``Relative``'s official."""

    facts = Facts(log_det=LogDet.EXACT)

    def __init__(self, model: Flow) -> None:
        weight = model.layers[0].weight
        d, kind = len(weight), {"device": weight.device, "dtype": weight.dtype}
        self.model = model
        self.base = MultivariateNormal(torch.zeros(d, **kind), torch.eye(d, **kind))

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        inputs, outputs, z = [], [], batch
        for layer in self.model.layers:
            inputs.append(z)
            outputs.append(layer(z))
            outputs[-1].retain_grad()
            z = self._activation(outputs[-1])
        hidden = torch.stack(outputs[:-1])
        (slopes,) = torch.autograd.grad(self._activation(hidden), hidden, torch.ones_like(hidden), create_graph=True)
        (-self.base.log_prob(outputs[-1]).mean() - slopes.log().sum((0, 2)).mean()).backward()
        mark("gradient")
        with torch.no_grad():
            for layer, z, y in zip(self.model.layers, inputs, outputs, strict=True):
                self._multiply(layer, z, y.grad)
        mark("relative")

    def _activation(self, y: Tensor) -> Tensor:
        return self.model.alpha * y + (1 - self.model.alpha) * torch.logaddexp(y, torch.zeros_like(y))

    @staticmethod
    def _multiply(layer: torch.nn.Linear, z: Tensor, delta: Tensor) -> None:
        """From the backpropagated error to the relative gradient; with M = Wᵀ, M (Mᵀ zᵀ) δ + (M b) ⊗ db − M."""
        M, b, db = layer.weight.T, layer.bias, layer.bias.grad
        Mb = M @ b
        layer.weight.grad = (M @ (M.T @ z.T) @ delta + torch.outer(Mb, db)).T - layer.weight
        layer.bias.grad = db * (1 + b @ b) + delta.T @ (z @ Mb)


def parameters_of(model: Flow) -> Any:
    """Copy a flow's layers into JAX, as (M, b) with M = Wᵀ."""
    import jax

    layers = [(layer.weight.detach().T.cpu().numpy(), layer.bias.detach().cpu().numpy()) for layer in model.layers]
    return jax.tree.map(jax.numpy.array, layers)  # with memory of their own


class Jax:
    """The JAX code's step, jitted whole, Adam included; it keeps parameters of its own and leaves the model's alone.

    XLA chooses its threads itself: compare it on all cores.
    """

    facts = Facts(log_det=LogDet.EXACT)

    def __init__(self, model: Flow, lr: float) -> None:
        import jax

        self.alpha, self.lr, parameters = model.alpha, lr, parameters_of(model)
        zeros = jax.tree.map(jax.numpy.zeros_like, parameters)
        self.state: Any = (parameters, zeros, zeros, jax.numpy.int32(0))
        self.step = jax.jit(self._step)

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        import jax

        self.state = jax.block_until_ready(self.step(self.state, batch.numpy()))
        mark("update")

    def gradient(self, parameters: Any, x: Any) -> Any:
        """Relative gradients of each (M, b), y = x M + b, from those at zeros added to each y."""
        import jax
        from jax import numpy as jnp

        def activation(y: Any) -> Any:
            return self.alpha * y + (1 - self.alpha) * jnp.logaddexp(y, 0)

        def loss(parameters: Any, added: Any, x: Any) -> Any:
            inputs, total, z = [], 0.0, x
            for k, ((M, b), zero) in enumerate(zip(parameters, added, strict=True)):
                inputs.append(z)
                y = z @ M + zero + b
                if k + 1 < len(parameters):
                    total += jnp.log(jax.vmap(jax.vmap(jax.grad(activation)))(y)).sum(1)
                    z = activation(y)
            return -(total + jax.scipy.stats.norm.logpdf(y).sum(1)).mean(), inputs

        added = [jnp.zeros_like(x) for _ in parameters]
        (plain, errors), inputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, added, x)
        found = []
        for (M, b), (_, db), delta, z in zip(parameters, plain, errors, inputs, strict=True):
            dM = M @ (M.T @ z.T) @ delta + jnp.outer(M @ b, db) - M
            found.append((dM, db * (1 + b @ b) + b @ M.T @ z.T @ delta))
        return found

    def _step(self, state: Any, x: Any) -> Any:
        import jax

        parameters, first, second, steps = state
        gradient, (one, two), steps = self.gradient(parameters, x), BETAS, steps + 1
        first = jax.tree.map(lambda m, g: one * m + (1 - one) * g, first, gradient)
        second = jax.tree.map(lambda v, g: two * v + (1 - two) * g**2, second, gradient)
        rate, correction = self.lr / (1 - one**steps), 1 / (1 - two**steps)
        parameters = jax.tree.map(
            lambda p, m, v: p - rate * m / ((v * correction) ** 0.5 + EPS), parameters, first, second
        )
        return parameters, first, second, steps

    def state_dict(self) -> dict[str, Any]:
        import jax

        return {"state": jax.tree.map(np.asarray, self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        import jax

        self.state = jax.block_until_ready(jax.tree.map(jax.numpy.asarray, state["state"]))


class JaxWritten(Jax):
    """The same direction in JAX with the backward pass written out, plain SGD in the same jitted pass, buffers donated.

    ``Relative``'s plain one, for a flow of normal base: what one who knows JAX would write.
    """

    def __init__(self, model: Flow, lr: float) -> None:
        import jax

        self.alpha, self.lr, self.state = model.alpha, lr, parameters_of(model)
        self.step = jax.jit(self._step, donate_argnums=0)

    def _step(self, state: Any, x: Any) -> Any:
        import jax

        seen, z = [], x
        for M, b in state:
            u = z @ M
            seen.append((u, y := u + b))
            z = y - (1 - self.alpha) * jax.nn.log_sigmoid(y)
        moved, delta = [], seen[-1][1]
        for k in reversed(range(len(state))):
            (M, b), (u, _) = state[k], seen[k]
            gradient = (u @ M.T).T @ delta / len(x) - M
            moved.append((M - self.lr * gradient, b - self.lr * delta.mean(0)))
            if k:
                s = jax.nn.sigmoid(seen[k - 1][1])
                slope = self.alpha + (1 - self.alpha) * s
                delta = (delta @ M.T) * slope - (1 - self.alpha) * s * (1 - s) / slope
        return moved[::-1]
