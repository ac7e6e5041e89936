"""Counted FLOPs against closed forms; growth of every optimizer's FLOPs, the gate that needs no clock."""

import math

import pytest
import torch
from torch import Tensor

from stepscale.bench.counting.operation_counts import Allocated, OperationLog, product_flops
from stepscale.models import MAF, Flow
from stepscale.optimizers import KFAC, Jacobian, Layerwise, Relative, RelativeSGD
from stepscale.optimizers.relative import relative
from tests.counts import OPTIMIZERS, TORCH, Row, committed, count, count_doubling, counted, differences, expected

B, L = 100, 2
# the least and the greatest exponent of the FLOPs between the two dims
ORDERS = {
    "naive": (2.8, 3.01),
    "layerwise": (2.7, 3.0),
    "sgd_momentum": (2.7, 3.0),
    "nesterov": (2.7, 3.0),
    "adam": (2.7, 3.0),
    "relative": (1.99, 2.05),
    "relative_momentum": (1.99, 2.05),
    "relative_adam": (1.99, 2.05),
    "relative_fused": (1.9, 2.05),  # B² d and B³ on top of B d²
    "kfac": (2.5, 3.0),
    "kfac_clipped": (2.5, 3.0),
    "kfac_low_rank": (1.9, 2.2),  # the samples' LU, every 10 steps, alone is cubic
    "kfac_whole": (2.5, 3.0),
    "kldwrm_so": (2.2, 3.0),
    "kldwrm_q": (2.1, 3.0),
    "hessian_free": (2.0, 3.0),
    "lanczos_newton": (2.7, 3.0),
    "learned_rates": (2.7, 3.0),
    "ekfac": (2.5, 3.01),
    "foof": (2.3, 3.0),
    "tnt": (2.1, 3.0),
    "tnt_trusted": (2.2, 3.0),
    "shampoo": (2.2, 3.05),  # eigendecompositions
    "mini_block": (2.2, 3.0),
    "tnt_dense": (2.7, 3.0),
    "shampoo_dense": (2.6, 3.05),
    "mini_block_dense": (2.6, 3.0),
    "kbfgs": (2.0, 3.0),  # v is mapped back through the weights
    "kbfgs_limited": (2.0, 3.0),
    "mfac": (2.7, 3.0),  # of layerwise, whose determinant is cubic
    "relative_mfac": (1.99, 2.05),
    "natural": (1.9, 2.05),
    "inverse": (2.7, 3.0),
    "stale_inverse": (2.2, 3.0),
    "stochastic_trace": (2.4, 3.0),
    "self_normalizing": (1.99, 2.05),
}


def counts_of(direction: object, x: Tensor) -> OperationLog:
    with OperationLog() as counts:
        direction(x)  # type: ignore[operator]
    assert not counts.uncounted
    return counts


def test_relative_step_has_the_flops_of_the_limit() -> None:
    model, x = Flow(128, L), torch.randn(B, 128)
    limit = product_flops(model.products(B))
    assert limit == 2 * (4 * L - 1) * B * 128**2
    assert counts_of(Relative(model), x).flops == limit
    assert counts_of(RelativeSGD(model, lr=1e-3, track=False), x).flops == limit


def test_layerwise_adds_a_factorisation_and_a_solve_a_layer() -> None:
    """Backprop's 3L − 1 products, and per layer 2/3 d³ for LU and 2 d³ for W⁻ᵀ."""
    d = 64
    backprop = 2 * (3 * L - 1) * B * d**2
    assert counts_of(Layerwise(Flow(d, L)), torch.randn(B, d)).flops == pytest.approx(backprop + L * (2 / 3 + 2) * d**3)


def test_a_masked_autoregressive_flow_is_quadratic_without_any_determinant() -> None:
    """Two autoregressions of d × h and h × 2d: forward, weighed, and back but for the first."""
    flops = [counts_of(Layerwise(MAF(d, 2)), torch.randn(B, d)).flops for d in (64, 128)]
    assert flops == [2 * B * d**2 * (3 * (1 + 2) * 2 - 1) for d in (64, 128)]
    assert math.log2(flops[1] / flops[0]) <= ORDERS["relative"][1]


def test_jacobian_pays_a_factorisation_a_sample() -> None:
    d, b = 32, 10
    assert counts_of(Jacobian(Flow(d, L)), torch.randn(b, d)).flops > b * (2 / 3 + 2) * d**3


def test_kfac_refresh_and_cheap_step() -> None:
    """Relative frame, no bias, per layer: rank-B part 4 products, and one of d³ for the log-determinant."""
    d = 64
    model = Flow(d, L, bias=False)
    step = KFAC(model, statistics="data")
    refresh, cheap = (counts_of(step, torch.randn(B, d)).flops for _ in range(2))
    capture, precondition = 2 * (2 * L - 1) * B * d**2, L * (4 * 2 * B * d**2 + 2 * d**3)
    assert cheap == capture + precondition
    factors, inverses = L * 2 * 2 * B * d**2, L * (2 * (1 / 3 + 2 / 3) * d**3 + 2 * d**3)
    assert refresh == pytest.approx(cheap + factors + inverses)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda A: torch.linalg.slogdet(A), 2 / 3 * 512),
        (lambda A: torch.linalg.slogdet(A.expand(5, 8, 8)), 5 * 2 / 3 * 512),
        (lambda A: torch.linalg.inv(A), 8 / 3 * 512),
        (lambda A: torch.linalg.cholesky(A @ A.T + torch.eye(8)), (2 + 1 / 3) * 512),
        (lambda A: torch.cholesky_inverse(A), 2 / 3 * 512),
        (lambda A: torch.linalg.solve(A, torch.ones(8, 3)), 2 / 3 * 512 + 2 * 64 * 3),
        (lambda A: A @ torch.ones(8), 2 * 64),
        (lambda A: torch.linalg.eigh(A + A.T), 9 * 512),
        (lambda A: torch.linalg.svd(A, full_matrices=False), 22 * 512),
        (lambda A: torch.linalg.svd(A[:3].expand(5, 3, 8), full_matrices=False), 5 * (14 * 8 * 9 + 8 * 27)),
        (lambda A: torch.linalg.svd(A[:, :3]), 4 * 64 * 3 + 8 * 8 * 9 + 9 * 27),
        (lambda A: torch.linalg.qr(A[:, :3]), 4 * 8 * 9 - 4 / 3 * 27),
        (lambda A: torch.addmv(torch.ones(8), A, torch.ones(8)), 2 * 64),
        (lambda A: torch.ones(8, 8).addmm_(A, A), 2 * 512),
        (lambda A: torch.ones(8).addmv_(A, torch.ones(8)), 2 * 64),
        (
            lambda A: torch.conv2d(A.view(2, 4, 2, 4), torch.ones(6, 2, 2, 2), groups=2, padding=1),
            2 * 2 * 15 * 6 * 2 * 4,
        ),
        (lambda A: A.expand(5, 8, 8).contiguous() @ torch.ones(5, 8, 3), 5 * 2 * 64 * 3),
    ],
)
def test_rules_by_shape(operation: object, expected: float) -> None:
    A = torch.randn(8, 8)
    with OperationLog() as counts:
        operation(A)  # type: ignore[operator]
    assert counts.flops == pytest.approx(expected)
    assert not counts.uncounted


def test_what_has_no_rule_is_named_not_dropped() -> None:
    with OperationLog() as counts:
        torch.linalg.eig(torch.eye(4))
    assert counts.uncounted == {"linalg_eig"}


def test_a_host_synchronisation_is_counted() -> None:
    with OperationLog() as counts:
        torch.ones(3).sum().item()
    assert counts.synchronisations == 1


def exponent(rows: list[Row]) -> float:
    return math.log2(rows[1]["flops"] / rows[0]["flops"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_growth_per_doubling(name: str) -> None:
    assert name in ORDERS, f"state the order of {name}'s FLOPs in ORDERS"
    low, high = ORDERS[name]
    assert low <= exponent(counted(name)) <= high


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_costs_are_those_committed(name: str) -> None:
    found = differences(counted(name), expected(name), committed()["torch"] == TORCH)
    assert not found, "\n".join([*found, "if that is meant, commit to it by make counts-update"])


def test_every_committed_cost_belongs_to_an_optimizer() -> None:
    assert {row["optimizer"] for row in committed()["rows"]} == set(OPTIMIZERS)


def test_a_wrongly_associated_relative_gradient_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def cubic(io: relative.LayerIO, bias: str, out: Tensor) -> None:
        out.copy_((io.delta.T @ io.y / B) @ io.layer.weight - io.layer.weight)

    monkeypatch.setattr(relative, "write_weight_gradient", cubic)
    assert exponent(count_doubling("relative")) > ORDERS["relative"][1] + 0.3


def test_a_cubic_term_of_a_seventh_of_the_step_is_found_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = relative.write_weight_gradient

    def with_cubic_term(io: relative.LayerIO, bias: str, out: Tensor) -> None:
        W = io.layer.weight
        exact(io, bias, out)
        out.add_(W[:, : len(W) // 10] @ W[: len(W) // 10], alpha=0)

    monkeypatch.setattr(relative, "write_weight_gradient", with_cubic_term)
    rows = count_doubling("relative")
    flops = expected("relative")[0]["flops"]
    assert rows[0]["dim"] == 512 and 1.12 * flops < rows[0]["flops"] < 1.18 * flops
    said = differences(rows, expected("relative"), same_torch=False)
    assert [line.split(" is ")[0] for line in said] == [
        "relative at dim 512: flops",
        "relative at dim 1024: flops_growth",
        "relative at dim 1024: flops",
    ]


def test_more_operations_and_bytes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, there = relative.write_weight_gradient, counted("relative")

    def with_a_copy(io: relative.LayerIO, bias: str, out: Tensor) -> None:
        copy = out.clone()
        exact(io, bias, copy)
        out.copy_(copy)

    monkeypatch.setattr(relative, "write_weight_gradient", with_a_copy)
    said = "\n".join(differences([count("relative", 512)], there, same_torch=True))
    assert "operations" in said and "peak_bytes" in said and "flops" not in said


def test_bytes_alive_and_at_their_peak() -> None:
    there = torch.zeros(1000)
    with Allocated() as allocated:
        a = there + 1
        a.add_(1)
        b = a.view(10, 100).T
        there.mul_(2)
        c = a + a
        del c
        d = torch.empty(500).copy_(a[:500])
        del a
    assert allocated.peak_bytes == 8000
    assert allocated.live_bytes == 6000, "a view keeps its base alive"
    assert b.numel() + d.numel() == 1500
