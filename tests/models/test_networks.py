"""Layered models against autograd in float64: captures, samples, Fisher products; the factored flow too."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.models import MLP, Autoencoder, Batch, Classifier, Flow, PLUFlow, slopes
from tests.conftest import batch_of, generic_flow
from tests.support.dense import NETWORKS, dense_fisher, network

pytestmark = pytest.mark.numerical

ALL = pytest.mark.parametrize("name", NETWORKS)


@ALL
def test_capture_holds_the_gradient_of_every_layer(name: str) -> None:
    model, batch = network(name)
    model.loss(batch).backward()
    for io in model.capture(batch):
        torch.testing.assert_close(io.delta.T @ io.a / len(io.a), io.layer.weight.grad)
        torch.testing.assert_close(io.y, io.layer(io.a).detach())
        if io.layer.bias is not None:
            torch.testing.assert_close(io.delta.mean(0), io.layer.bias.grad)
        assert not io.log_det


@ALL
def test_slopes_are_the_loss_along_a_direction(name: str) -> None:
    model, batch = network(name)
    ios = model.capture(batch)
    tangents = random_tangents(model)
    ahead, behind = (shifted_loss(model, batch, tangents, sign * 1e-5) for sign in (1, -1))
    assert slopes(ios, tangents).mean().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def test_slopes_hold_the_log_determinant() -> None:
    model, x = generic_flow(), batch_of()
    tangents = random_tangents(model)
    ahead, behind = (shifted_loss(model, x, tangents, sign * 1e-5) for sign in (1, -1))
    assert slopes(model.capture(x), tangents).mean().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def random_tangents(model: Any) -> list[tuple[Tensor, Tensor | None]]:
    return [
        (torch.randn_like(layer.weight), None if layer.bias is None else torch.randn_like(layer.bias))
        for layer in model.layers
    ]


@torch.no_grad()
def shifted_loss(model: Any, batch: Batch, tangents: list, size: float) -> float:
    def move(share: float) -> None:
        for layer, (dW, db) in zip(model.layers, tangents, strict=True):
            layer.weight.add_(dW, alpha=share)
            if db is not None:
                layer.bias.add_(db, alpha=share)

    move(size)
    loss = model.loss(batch).item()
    move(-size)
    return loss


def flat(tangents: list) -> Tensor:
    return torch.cat([part.flatten() for pair in tangents for part in pair if part is not None])


@ALL
def test_fisher_roots_give_the_dense_fisher(name: str) -> None:
    model, batch = network(name)
    u, v = random_tangents(model), random_tangents(model)
    roots = model.fisher_roots(model.capture(batch), [u, v])
    found = (roots[0] * roots[1]).sum() / len(roots[0])
    expected = flat(u) @ dense_fisher(model, batch) @ flat(v)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@ALL
def test_sampled_targets_have_the_fisher_as_their_second_moment(name: str) -> None:
    """Scores of samples: mean zero, and their second moment along a direction the Fisher's, by many draws."""
    model, batch = network(name, rows=3)
    ios, tangents = model.capture(batch), random_tangents(model)
    draws = torch.stack([slopes(model.capture_samples(ios), tangents) for _ in range(4000)])
    expected = model.fisher_roots(ios, [tangents])[0].square().sum(1)
    assert (draws.mean(0).abs() < 5 * (expected / 4000).sqrt()).all()
    assert ((draws.square().mean(0) / expected - 1).abs() < 0.2).all()


def test_flow_samples_have_scores_of_mean_zero() -> None:
    model = generic_flow(3, 2)
    tangents = random_tangents(model)
    (found,) = model.fisher_roots(model.capture(batch_of(40_000, 3)), [tangents])
    assert abs(found.mean().item()) < 5 * found.std().item() / math.sqrt(len(found))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Autoencoder(5, 3), "depth must be even and at least 2, got depth=3"),
        (lambda: Autoencoder(5, 4, hidden=[3]), r"2 widths, the code's last, got \[3\]"),
        (lambda: Autoencoder(5, 2, output="categorical"), "bernoulli or gaussian"),
        (lambda: Classifier(5, 2, classes=1), "classes=1"),
        (lambda: Classifier(5, 2, activation="gelu"), "tanh, relu, got 'gelu'"),
        (lambda: Autoencoder(5, 2, output="bernoulli").loss(torch.tensor([[2.0] * 5])), r"targets in 0 … 1"),
        (
            lambda: MLP([5, 1], activation="tanh", output="gaussian").loss((torch.randn(3, 5), torch.randn(3))),
            r"gaussian outputs of 3 rows need targets of shape \(3, 1\), got \(3,\).*unsqueeze",
        ),
        (lambda: Autoencoder(5, 2).loss((torch.randn(5, 5), torch.arange(5))), r"of shape \(5, 5\), got \(5,\)"),
        (lambda: Classifier(5, 2).loss(torch.randn(3, 5)), "a classifier needs int64 labels, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_widths_of_the_autoencoder() -> None:
    papers = Autoencoder(784, 8, hidden=[1000, 500, 250, 30])
    assert [layer.out_features for layer in papers.layers] == [1000, 500, 250, 30, 250, 500, 1000, 784]
    assert papers.linear == {3, 7}
    assert [layer.out_features for layer in Autoencoder(64).layers] == [64, 32, 16, 8, 16, 32, 64, 64]


def test_limit_of_a_network_is_backpropagation() -> None:
    shapes = Autoencoder(6, 2, hidden=[2]).products(10)
    assert shapes == [(10, 6, 2), (10, 2, 6), (10, 6, 2), (2, 10, 6), (6, 10, 2)]


def test_limit_of_a_factored_flow_is_what_its_triangles_need() -> None:
    """Of two triangular products a layer, each half a full one: forward, backward but for the input, and gradients."""
    dim, depth, batch = 6, 3, 10
    half = batch * dim**2  # FLOPs of a triangular product; a full one has twice as many
    least = half * (2 * depth + (2 * depth - 1) + 2 * depth)
    named = sum(2 * m * k * n for m, k, n in PLUFlow(dim, depth).products(batch))
    assert least - half <= named <= least


def test_factored_flow_is_the_flow_of_its_weights() -> None:
    torch.manual_seed(1)
    factored, x = PLUFlow(5, 3).double(), batch_of()
    with torch.no_grad():
        for layer in factored.layers:
            layer.lower.add_(torch.randn_like(layer.lower), alpha=0.2)
            layer.upper.add_(torch.randn_like(layer.upper), alpha=0.2)
    plain = Flow(5, 3).double()
    with torch.no_grad():
        for one, other in zip(plain.layers, factored.layers, strict=True):
            one.weight.copy_(other.weight)
            one.bias.copy_(other.bias)
    torch.testing.assert_close(factored.log_prob(x), plain.log_prob(x))
    torch.testing.assert_close(factored.inverse(factored(x)), x)
    factored.loss(x).backward()
    assert all(p.grad is not None for p in factored.parameters())
    assert (factored.layers[0].upper.grad.tril(-1) == 0).all()


def test_a_sparse_beginning_is_of_fifteen_weights_a_unit() -> None:
    """Sutskever et al. 2013, section 3.1: N(0, 1), biases 0; with tanh times 0.25 and biases 0.5."""
    torch.manual_seed(0)
    model = Autoencoder(256, 4, hidden=[100, 10], init="sparse")
    for k, layer in enumerate(model.layers):
        kept = layer.weight != 0
        assert set(kept.sum(1).tolist()) == {min(15, layer.in_features)}
        scale, shift = (1.0, 0.0) if k in model.linear else (0.25, 0.5)
        assert layer.weight[kept].std().item() == pytest.approx(scale, rel=0.1)
        assert layer.bias.unique().tolist() == [shift]
    rectified = Classifier(64, 2, activation="relu", init="sparse")
    assert rectified.layers[0].weight[rectified.layers[0].weight != 0].std().item() == pytest.approx(1, rel=0.1)
    assert not rectified.layers[0].bias.any()


def test_a_normal_beginning_does_not_depend_on_the_width() -> None:
    for width in (50, 400):
        layer = Classifier(width, 2, init="normal").layers[0]
        assert layer.weight.std().item() == pytest.approx(0.1, rel=0.1) and not layer.bias.any()
    with pytest.raises(ValueError, match="init must be one of xavier, sparse, normal, got 'zeros'"):
        Classifier(8, init="zeros")
