"""The natural gradient against dense solves from each row's own autograd, and its limits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.models import Flow
from stepscale.optimizers import NaturalGradient, Relative
from tests.conftest import batch_of, generic_flow, gradients, rounding
from tests.support.dense import network

pytestmark = pytest.mark.numerical


def dense_scores(model: Any, x: Tensor, targets: Tensor | None, relative: bool) -> list[Tensor]:
    """Each layer's scores ``[batch, out · (in + 1)]``, by autograd of each row's loss, in the frame asked for."""
    rows: list[list[Tensor]] = [[] for _ in model.layers]
    for k in range(len(x)):
        model.zero_grad()
        batch = x[k : k + 1] if targets is None else (x[k : k + 1], targets[k : k + 1])
        model.loss(batch).backward()
        for row, layer in zip(rows, model.layers, strict=True):
            W, b = layer.weight.detach(), layer.bias.detach()
            dW, db = layer.weight.grad, layer.bias.grad
            if relative:  # the chain rule of (I + E) W and (I + E) b + e at E = 0, e = 0
                dW = dW @ W.T + torch.outer(db, b)
            row.append(torch.cat([dW, db.unsqueeze(1)], dim=1).flatten())
    model.zero_grad()
    return [torch.stack(row) for row in rows]


def dense_natural(
    data: list[Tensor], fisher: list[Tensor], damping: float, joint: bool
) -> tuple[list[Tensor], list[float]]:
    """Each layer's (F + λ I)⁻¹ ∇, and the error in norm that the condition of F + λ I allows it."""

    def solve(S: Tensor, gradient: Tensor) -> tuple[Tensor, float]:
        damped = S.T @ S / len(S) + damping * torch.eye(S.shape[1], dtype=S.dtype)
        solution = torch.linalg.solve(damped, gradient)
        return solution, rounding(damped) * solution.norm().item()

    if joint:
        whole, allowed = solve(torch.cat(fisher, dim=1), torch.cat(data, dim=1).mean(0))
        return list(whole.split([S.shape[1] for S in data])), [allowed] * len(data)
    solutions = [solve(S, s.mean(0)) for S, s in zip(fisher, data, strict=True)]
    return [solution for solution, _ in solutions], [allowed for _, allowed in solutions]


@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("blocks", ["joint", "layer"])
@pytest.mark.parametrize("statistics", ["data", "model"])
@pytest.mark.parametrize("kind", ["relative", "euclidean", "network"])
def test_natural_gradient_equals_the_dense_solve(kind: str, statistics: str, blocks: str, damping: float) -> None:
    if kind == "network":
        model, x = network("tanh", 9)
        samples = model.capture_samples(model.capture(x))
        drawn, targets = x, samples[-1].y - samples[-1].delta  # δ = y − t
        model.capture_samples = lambda ios: samples
    else:
        model, x = generic_flow(), batch_of(9)
        drawn, targets = model.sample(9), None
        model.capture_samples = lambda ios: model.capture(drawn)
    relative = kind == "relative"
    data = dense_scores(model, x, x if kind == "network" else None, relative)
    fisher = data if statistics == "data" else dense_scores(model, drawn, targets, relative)
    frame = "relative" if relative else "euclidean"
    NaturalGradient(model, damping=damping, blocks=blocks, frame=frame, statistics=statistics)(x)
    solved = zip(model.layers, *dense_natural(data, fisher, damping, blocks == "joint"), strict=True)
    for layer, expected, allowed in solved:
        D = expected.reshape(layer.out_features, -1)
        if relative:
            W, b = layer.weight.detach(), layer.bias.detach()
            D = torch.cat([D[:, :-1] @ W, (D[:, :-1] @ b + D[:, -1]).unsqueeze(1)], dim=1)
        found = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], dim=1)
        assert (found - D).norm() < allowed


def test_heavily_damped_natural_gradient_is_the_relative_gradient() -> None:
    model, x = generic_flow(), batch_of()
    NaturalGradient(model, damping=1e15)(x)  # what is left of F is its norm over this, 1e-11 and below
    found = gradients(model)
    Relative(model, bias="affine")(x)
    for one, other in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(one * 1e15, other, rtol=1e-8, atol=1e-8)


def test_natural_gradient_of_one_row_is_its_score_scaled() -> None:
    model, x = generic_flow(), batch_of(1)
    (scores,) = [torch.cat(dense_scores(model, x, None, True), dim=1)]
    Relative(model, bias="affine")(x)
    plain = gradients(model)
    NaturalGradient(model, damping=0.5)(x)
    for one, other in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(one, other / (0.5 + scores.square().sum()))


def test_natural_gradient_in_float32_keeps_its_digits() -> None:
    """The direct solve for c; by (1/B − w)/λ it would lose all of them at so small a damping."""
    model, x = generic_flow(40, 2), batch_of(30, 40)
    found = []
    for dtype in (torch.float64, torch.float32):
        NaturalGradient(model.to(dtype), damping=1e-4)(x.to(dtype))
        found.append(torch.cat([g.double().flatten() for g in gradients(model)]))
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"blocks": "rows"}, "joint, layer, got 'rows'"),
        ({"statistics": "none"}, "model, data, got 'none'"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NaturalGradient(Flow(3), **options)
