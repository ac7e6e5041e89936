"""The authors' formulations give the released code's direction, ``bias="official"``, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch

from stepscale.models import Flow
from stepscale.optimizers import Relative, RelativeSGD
from tests.peers.released import Jax, JaxWritten, Notebook

pytestmark = pytest.mark.numerical


def flow(depth: int = 3) -> Flow:
    torch.manual_seed(0)
    model = Flow(6, depth).double()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))
            layer.bias.normal_()
    return model


def written(direction: Any, x: torch.Tensor) -> list[torch.Tensor]:
    for parameter in direction.model.parameters():
        parameter.grad = None
    direction(x)
    return [parameter.grad.clone() for parameter in direction.model.parameters()]


def test_the_notebook_s_direction() -> None:
    model, x = flow(), torch.randn(9, 6, dtype=torch.float64)
    for got, expected in zip(written(Notebook(model), x), written(Relative(model, bias="official"), x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_the_jax_direction_and_step() -> None:
    jax = pytest.importorskip("jax", reason="of the extra peers")
    model, x = flow(), torch.randn(9, 6, dtype=torch.float64)
    expected = written(Relative(model, bias="official"), x)
    with jax.enable_x64(True):
        step = Jax(model, lr=1e-3)
        found = [part for M, b in step.gradient(step.state[0], x.numpy()) for part in (np.asarray(M).T, np.asarray(b))]
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
        update = torch.optim.Adam(model.parameters(), lr=1e-3)
        update.step()
        step(x)
        for (M, b), layer in zip(step.state[0], model.layers, strict=True):
            np.testing.assert_allclose(np.asarray(M).T, layer.weight.detach(), rtol=1e-9)
            np.testing.assert_allclose(b, layer.bias.detach(), rtol=1e-9)


def test_the_written_jax_step_is_plain_relative_descent() -> None:
    jax = pytest.importorskip("jax", reason="of the extra peers")
    model, batches = flow(), [torch.randn(9, 6, dtype=torch.float64) for _ in range(3)]
    with jax.enable_x64(True):
        step = JaxWritten(model, lr=1e-2)
        saved = step.state_dict()
        for _ in range(2):
            for x in batches:
                step(x)
            found = [np.asarray(part) for layer in step.state for part in layer]
            step.load_state_dict(saved)
    ours = RelativeSGD(model, lr=1e-2, track=False)
    for x in batches:
        ours(x)
    expected = [part for layer in model.layers for part in (layer.weight.detach().T, layer.bias.detach())]
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
