"""EKFAC against dense solves and the dense Fisher's own diagonal in the eigenbasis, in float64."""

import pytest
import torch

from stepscale.optimizers import EKFAC, Schedule
from stepscale.optimizers.core.frames import inputs
from tests.conftest import batch_of, generic_flow
from tests.support.dense import EUCLIDEAN, homogeneous, network, written

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("frame", ["relative", "euclidean"])
def test_kronecker_scales_are_exact_tikhonov_damping(frame: str) -> None:
    model, x = generic_flow(), batch_of(20)
    EKFAC(model, damping=0.3, scales="kronecker", frame=frame, statistics="data")(x)
    for io in model.capture(x):
        assert io.layer.weight.grad is not None and io.layer.bias.grad is not None
        W, b, d = io.layer.weight.detach(), io.layer.bias.detach(), 5
        rows = homogeneous(io.y if frame == "relative" else io.a)
        A, G = rows.T @ rows / 20, io.delta.T @ io.delta / 20
        gradient = io.delta.T @ rows / 20
        gradient[:, :d] -= torch.eye(d, dtype=W.dtype) if frame == "relative" else torch.linalg.inv(W).T
        dense = torch.kron(G, A) + 0.3 * torch.eye(d * (d + 1), dtype=W.dtype)
        D = torch.linalg.solve(dense, gradient.reshape(-1)).reshape(d, d + 1)
        if frame == "relative":
            D = torch.cat([D[:, :d] @ W, (D[:, :d] @ b + D[:, d]).unsqueeze(1)], dim=1)
        torch.testing.assert_close(written(io), D, rtol=1e-8, atol=1e-9)


def test_measured_scales_are_nearer_the_fisher_than_kroneckers_and_have_its_trace() -> None:
    model, batch = network("tanh", 30)
    io = model.capture(batch)[1]
    scores = torch.einsum("no,ni->noi", io.delta, homogeneous(io.a)).flatten(1)
    F = scores.T @ scores / 30
    distances = []
    for scales in ("measured", "kronecker"):
        step = EKFAC(model, scales=scales, **EUCLIDEAN)
        step(batch)
        state = step.applied[1]
        Q = torch.kron(state.Q_G, state.Q_A)
        approximation = Q @ torch.diag(state.S.reshape(-1)) @ Q.T
        distances.append(torch.linalg.matrix_norm(F - approximation).item())
        if scales == "measured":
            torch.testing.assert_close(approximation.trace(), F.trace())
            torch.testing.assert_close(state.S.reshape(-1), torch.diagonal(Q.T @ F @ Q))
    assert distances[0] < distances[1]


def test_measured_scales_are_averaged_between_eigendecompositions() -> None:
    model = generic_flow(3, 1)
    step = EKFAC(model, statistics="data", schedule=Schedule(statistics=1, inverse=6, decay=0.6))
    batches = [batch_of(10, 3) for _ in range(10)]  # the basis is made anew on the seventh
    for batch in batches:
        step(batch)
    Q_A, Q_G = step.applied[0].Q_A, step.applied[0].Q_G
    moments = []
    for batch in batches:
        (io,) = model.capture(batch)
        moments.append((io.delta @ Q_G).square().T @ (inputs(io, True) @ Q_A).square() / 10)
    a, b, c, d = moments[6:]
    torch.testing.assert_close(step.applied[0].S, 0.6 * (0.6 * (a + b) / 2 + 0.4 * c) + 0.4 * d)
