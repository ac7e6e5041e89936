"""M-FAC against the empirical Fisher matrix of its window, formed in float64."""

from copy import deepcopy
from functools import partial

import mpmath
import pytest
import torch
from torch import Tensor, nn

from stepscale.models import Flow
from stepscale.optimizers import MFAC, InverseFisher, Relative, pair
from stepscale.optimizers.fisher import mfac

pytestmark = pytest.mark.numerical

P, WINDOW = 30, 8


def gradients(kind: str, count: int = 20) -> Tensor:
    """Orthogonal to a good part; of cosine 0.99; or two neighbours that are nearly equal."""
    found = torch.randn(count, P, dtype=torch.float64)
    if kind == "alike":
        found = found[:1] + 0.1 * found
    if kind == "twins":
        found[1::2] = found[::2] * (1 + 1e-3 * torch.randn(count // 2, P, dtype=torch.float64))
    return found


def dense(window: Tensor, damping: float, g: Tensor) -> Tensor:
    F = window.T @ window / WINDOW + damping * torch.eye(P, dtype=torch.float64)
    return torch.linalg.solve(F, g)


def test_long_rows_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfac, "WHOLE", 20)
    rows, weights = torch.randn(WINDOW, P), torch.randn(WINDOW, dtype=torch.float64)
    assert mfac.pieces(rows) == WINDOW and mfac.pieces(rows[:, :20]) == 1
    torch.testing.assert_close(mfac.products(rows, rows[3]), rows.double() @ rows[3].double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(mfac.combined(weights, rows), (weights @ rows.double()).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("damping", [1e-8, 1e-5, 1e-2])
@pytest.mark.parametrize("kind", ["apart", "alike", "twins"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_step_is_that_of_the_dense_matrix(dtype: torch.dtype, kind: str, damping: float) -> None:
    parameters = [nn.Parameter(torch.zeros(5, 4, dtype=dtype)), nn.Parameter(torch.zeros(10, dtype=dtype))]
    optimizer = MFAC(parameters, lr=1.0, window=WINDOW, damping=damping)
    rows = gradients(kind).to(dtype)
    for step, g in enumerate(rows):
        with torch.no_grad():
            for p in parameters:
                p.zero_()
        parameters[0].grad, parameters[1].grad = g[:20].view(5, 4).clone(), g[20:].clone()
        optimizer.step()
        moved = -torch.cat([p.detach().flatten() for p in parameters]).double()
        exact = dense(rows[max(0, step + 1 - WINDOW) : step + 1].double(), damping, g.double())
        assert (moved - exact).norm() <= (1e-6 if dtype is torch.float64 else 1e-4) * exact.norm()


def test_momentum_and_weight_decay() -> None:
    p = nn.Parameter(torch.ones(P, dtype=torch.float64))
    optimizer = MFAC([p], lr=0.1, window=WINDOW, damping=0.5, momentum=0.9, weight_decay=0.2)
    theta, buffer, window = torch.ones(P, dtype=torch.float64), 0.0, []
    for g in gradients("apart", 12):
        p.grad = g.clone()
        optimizer.step()
        window = [*window, g + 0.2 * theta][-WINDOW:]
        buffer = 0.9 * buffer + dense(torch.stack(window), 0.5, window[-1])
        theta = theta - 0.1 * buffer
        torch.testing.assert_close(p.detach(), theta, rtol=1e-10, atol=1e-10)


def test_a_parameter_without_a_gradient_has_none_in_the_window_and_stays() -> None:
    """The first one, which holds what is of all parameters."""
    parameters = [
        nn.Parameter(torch.zeros(10, dtype=torch.float64)),
        nn.Parameter(torch.zeros(20, dtype=torch.float64)),
    ]
    optimizer = MFAC(parameters, lr=1.0, window=WINDOW, damping=0.1)
    window = []
    for step, g in enumerate(gradients("apart", 12)):
        frozen = 3 <= step < 6
        g = torch.cat([torch.zeros(10, dtype=torch.float64), g[10:]]) if frozen else g
        before = [p.detach().clone() for p in parameters]
        parameters[0].grad, parameters[1].grad = None if frozen else g[:10].clone(), g[10:].clone()
        optimizer.step()
        window = [*window, g][-WINDOW:]
        moved = [old - p.detach() for old, p in zip(before, parameters, strict=True)]
        exact = dense(torch.stack(window), 0.1, g)
        torch.testing.assert_close(moved[1], exact[10:], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moved[0], torch.zeros_like(moved[0]) if frozen else exact[:10], rtol=1e-9, atol=1e-9)


def test_its_state_goes_on_where_it_was() -> None:
    model, other = (Flow(6).double() for _ in range(2))
    other.load_state_dict(model.state_dict())
    update = partial(MFAC, lr=1e-3, window=4, damping=0.1, momentum=0.5)
    step, again = (pair(m, Relative, update) for m in (model, other))
    batches = torch.randn(100, 6, dtype=torch.float64).split(10)
    for batch in batches[:6]:
        step(batch)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(deepcopy(step.state_dict()))
    for batch in batches[6:]:
        step(batch)
        again(batch)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


def test_torchs_own_loading_keeps_its_products() -> None:
    """Into another optimizer of the same float32 parameters, whose step is then the same to the bit."""
    rows, ends = gradients("twins", 12).float(), []
    for loaded in (False, True):
        parameters = [nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(20))]
        optimizer = MFAC(parameters, window=WINDOW, damping=1e-8)
        for g in rows:
            if loaded:
                state, optimizer = optimizer.state_dict(), MFAC(parameters, window=WINDOW, damping=1e-8)
                optimizer.load_state_dict(state)
            parameters[0].grad, parameters[1].grad = g[:10].clone(), g[10:].clone()
            optimizer.step()
        ends.append(torch.cat([p.detach() for p in parameters]))
    assert torch.equal(*ends)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MFAC([p])
    p.grad = torch.tensor([1.0, torch.nan, 0.0])
    with pytest.raises(FloatingPointError, match="a gradient is not finite: lower the learning rate"):
        optimizer.step()


@pytest.mark.parametrize(
    ("words", "said"), [({"window": 0}, "window=0"), ({"damping": 0.0}, "damping=0.0"), ({"lr": -1.0}, "lr=-1.0")]
)
def test_wrong_arguments_are_named(words: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MFAC([nn.Parameter(torch.ones(2))], **words)  # type: ignore[arg-type]


def test_the_static_inverse_is_the_dense_one() -> None:
    G, damping, w = torch.randn(7, P, dtype=torch.float64), 1e-3, torch.randn(P, dtype=torch.float64)
    F = G.T @ G / 7 + damping * torch.eye(P, dtype=torch.float64)
    exact, inverse = torch.linalg.inv(F), InverseFisher(G, damping)
    torch.testing.assert_close(inverse.times(w), exact @ w, rtol=1e-10, atol=1e-10)
    for k in range(3):  # the cheapest way to have w_k = 0, by Lagrange
        e = torch.eye(P, dtype=torch.float64)[k]
        move = -w[k] / exact[k, k] * exact @ e
        torch.testing.assert_close(inverse.pruning_costs(w)[k], 0.5 * move @ F @ move)
    with pytest.raises(ValueError, match="damping must be positive"):
        InverseFisher(G, 0.0)


@pytest.mark.parametrize("damping", [1e-8, 1e-5, 1e-2])
def test_the_static_diagonal_is_that_of_the_dense_inverse_in_fifty_digits(damping: float) -> None:
    """In float64 a dense inverse itself is off by 1e-8 at the least damping."""
    G = torch.randn(5, 16, dtype=torch.float64)
    with mpmath.workdps(50):
        rows = mpmath.matrix(G.tolist())
        exact = (rows.T * rows / 5 + mpmath.mpf(damping) * mpmath.eye(16)) ** -1
        diagonal = torch.tensor([float(exact[k, k]) for k in range(16)], dtype=torch.float64)
    torch.testing.assert_close(InverseFisher(G, damping).diagonal(), diagonal, rtol=1e-12, atol=0)
