"""The fused step against the pair it fuses; the tracked likelihood against determinants computed afresh."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor

from stepscale.bench.data.photographs import photos
from stepscale.models import Flow
from stepscale.optimizers import Relative, RelativeSGD, pair
from stepscale.optimizers.relative import fused
from stepscale.optimizers.relative.relative import Bias
from tests.conftest import batch_of, generic_flow

pytestmark = pytest.mark.numerical

LR = 0.02


def fresh_log_abs_det(model: Flow) -> float:
    return sum(torch.linalg.slogdet(layer.weight.detach().double()).logabsdet.item() for layer in model.layers)


@pytest.mark.parametrize("bias", Bias)
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("n", [3, 7])  # fewer rows than dims, and more
def test_fused_step_equals_the_pair(bias: str, track: bool, n: int) -> None:
    model = generic_flow()
    other = deepcopy(model)
    fused = RelativeSGD(model, LR, bias=bias, bound=1, track=track)
    paired = pair(other, partial(Relative, bias=bias), partial(torch.optim.SGD, lr=LR))
    for _ in range(5):
        x = batch_of(n) / 10
        fused(x)
        paired(x)
    assert fused.halved == 0
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", Bias)
@pytest.mark.parametrize("n", [3, 7])
def test_likelihood_is_known_on_every_step(bias: str, n: int) -> None:
    model = generic_flow()
    step = RelativeSGD(model, LR, bias=bias)
    for _ in range(20):
        x = batch_of(n)
        before = -model.loss(x).item()
        step(x)
        assert step.log_likelihood().item() == pytest.approx(before, abs=1e-10)
        assert step.log_abs_dets.sum().item() == pytest.approx(fresh_log_abs_det(model), abs=1e-9)


def test_float64_does_not_drift_in_2000_steps() -> None:
    model = Flow(8).double()
    step = RelativeSGD(model, LR)
    for _ in range(2_000):
        step(batch_of(16, 8))
    assert abs(step.anchor()) < 1e-9  # type: ignore[arg-type]


@pytest.mark.parametrize(("dim", "steps"), [(64, 10_000), (256, 2_000), (1024, 100)])
def test_float32_drifts_little_between_anchors(dim: int, steps: int) -> None:
    """The allowance for 2,000 steps is 1e-4 nats a dim and layer, in proportion where there are fewer."""
    rows = photos(dim, 10_000 if dim < 1024 else 1_000, seed=0).train
    model = Flow(dim)
    step = RelativeSGD(model, lr=0.3 / dim)
    for k in range(steps):
        step(rows[100 * k % len(rows) :][:100])
        if (k + 1) % 2_000 == 0 or k + 1 == steps:
            drift = step.anchor()
            assert drift is not None and abs(drift) < 1e-4 * 2 * dim * min(1, steps / 2_000)
    assert step.log_abs_dets.sum().item() == pytest.approx(fresh_log_abs_det(model), abs=1e-9)
    if steps == 10_000:
        assert -model.loss(rows[:100]).item() > 0  # it learned: it starts at -117


def singular_batch(model: Flow, lr: float) -> Tensor:
    """Return one row on which a plain step of a linear flow makes W singular: η |v|² = 1 + η, as δ = v there."""
    v = torch.zeros(1, 5, dtype=torch.float64)
    v[0, 0] = ((1 + lr) / lr) ** 0.5
    return torch.linalg.solve(model.layers[0].weight, v.T).T


def test_a_step_built_to_be_singular_is_halved_and_counted() -> None:
    model = Flow(5, depth=1).double()
    x = singular_batch(model, LR)
    plain, other = deepcopy(model), deepcopy(model)
    RelativeSGD(plain, LR, track=False)(x)
    assert abs(torch.linalg.det(plain.layers[0].weight).item()) < 1e-12, "it is singular"
    beyond = x * (1 + 1e-9)  # at x itself a rounding decides whether the bound of 1 is reached
    step = RelativeSGD(model, LR, bound=1)
    step(beyond)
    assert step.halved == 1
    RelativeSGD(other, LR / 2, track=False)(beyond)
    torch.testing.assert_close(model.layers[0].weight, other.layers[0].weight)
    assert step.log_abs_dets.sum().item() == pytest.approx(fresh_log_abs_det(model), abs=1e-9)


def test_crossing_eigenvalues_are_refused_though_the_determinant_is_positive() -> None:
    model = Flow(5, depth=1).double()
    v = torch.zeros(2, 5, dtype=torch.float64)
    v[0, 0] = v[1, 1] = (2 * 2.5 * (1 + LR) / LR) ** 0.5  # both eigenvalues of I - c v vᵀ are -1.5
    x = torch.linalg.solve(model.layers[0].weight, v.T).T
    factor = torch.eye(2, dtype=torch.float64) - LR / (1 + LR) / 2 * v @ v.T
    assert torch.linalg.det(factor) > 1
    step = RelativeSGD(model, LR)
    step(x)
    assert step.halved > 0


@pytest.mark.parametrize("bound", [0.25, 1.0])
def test_no_direction_shrinks_by_more_than_the_bound(bound: float) -> None:
    model = generic_flow(depth=1)
    before = model.layers[0].weight.detach().clone()
    RelativeSGD(model, lr=1.0, bound=bound)(100 * batch_of())
    change = torch.linalg.eigvals(model.layers[0].weight.detach() @ torch.linalg.inv(before))
    assert change.abs().min() > 1 - bound


def test_what_is_not_finite_is_refused_and_nothing_moves() -> None:
    model = generic_flow()
    before = deepcopy(model.state_dict())
    step = RelativeSGD(model, LR)
    with pytest.raises(FloatingPointError, match=r"not finite at lr=0\.02: lower lr"):
        step(batch_of() * float("nan"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_its_state_is_taken_up_again() -> None:
    model, x = generic_flow(), batch_of()
    step = RelativeSGD(model, lr=0.5)
    step(x)
    saved, weights = deepcopy(step.state_dict()), deepcopy(model.state_dict())
    step(x)
    again = RelativeSGD(model, lr=0.5)
    model.load_state_dict(weights)
    again.load_state_dict(saved)
    again(x)
    assert again.halved == step.halved > 0
    assert torch.equal(again.log_abs_dets, step.log_abs_dets)


def test_phases_are_marked() -> None:
    phases: list[str] = []
    RelativeSGD(generic_flow(), LR)(batch_of(), phases.append)
    assert phases == ["gradient", "determinants", "update"]


def test_untracked_it_needs_no_determinant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "log_abs_dets", None)
    step = RelativeSGD(generic_flow(), LR, track=False)
    step(batch_of())
    assert step.anchor() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr must be positive, got 0\.0"),
        ({"lr": 0.1, "bias": "none"}, "bias must be one of plain, affine, official, got 'none'"),
        ({"lr": 0.1, "bound": 0.0}, r"bound must lie in \(0, 1\], got 0\.0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeSGD(generic_flow(), **options)  # type: ignore[arg-type]


def test_a_model_that_cannot_say_its_likelihood_is_refused_unless_untracked() -> None:
    class Captured(torch.nn.Linear):
        def capture(self, batch: Tensor) -> list[object]:
            return []

    with pytest.raises(TypeError, match=r"needs Captured\.captured_log_prob"):
        RelativeSGD(Captured(3, 3), LR)
    RelativeSGD(Captured(3, 3), LR, track=False)


def test_likelihood_is_unknown_without_a_step_or_its_determinants() -> None:
    model = generic_flow()
    step, untracked = RelativeSGD(model, LR), RelativeSGD(model, LR, track=False)
    assert step.log_likelihood().isnan()
    step(batch_of())
    untracked(batch_of())
    assert untracked.log_likelihood().isnan()
    assert step.log_likelihood().isfinite()
    step.load_state_dict(step.state_dict())
    assert step.log_likelihood().isnan(), "the batch is not of the state"


def two_equal_rows(W: Tensor) -> None:
    W[1] = W[0]


@pytest.mark.parametrize("spoil", [two_equal_rows, Tensor.zero_], ids=["equal rows", "zero"])
def test_a_singular_weight_is_not_tracked(spoil: Callable[[Tensor], object]) -> None:
    """It would be off by 23 nats, and no likelihood is known."""
    model = Flow(16)
    with torch.no_grad():
        spoil(model.layers[1].weight)
    with pytest.raises(FloatingPointError, match=r"^the weight of layers\.1 is singular to rounding.* set track=false"):
        RelativeSGD(model, LR)
    RelativeSGD(model, LR, track=False)(torch.randn(8, 16))


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4])
def test_the_drift_stays_within_what_rounding_may_do(smallest: float) -> None:
    """At any condition that is not refused, against determinants computed afresh in float64."""
    model = Flow(16, depth=1)
    left, right = (torch.linalg.qr(torch.randn(16, 16)).Q for _ in range(2))
    with torch.no_grad():
        model.layers[0].weight.copy_(left * torch.linspace(smallest, 2, 16) @ right)
    step = RelativeSGD(model, LR)
    per_step = step.rounding_nats
    for _ in range(100):
        step(torch.randn(32, 16))
    drift = abs(step.log_abs_dets.sum().item() - fresh_log_abs_det(model))
    assert drift <= 100 * max(per_step, (step.anchor(), step.rounding_nats)[1])


def test_what_one_rounding_may_do_is_of_the_last_anchor() -> None:
    model = Flow(16, depth=1)
    step = RelativeSGD(model, LR)
    at_first = step.rounding_nats
    assert at_first == pytest.approx(16 * 2**-24, rel=1e-3), "of an orthogonal weight"
    with torch.no_grad():
        model.layers[0].weight[0].mul_(1e-3).add_(model.layers[0].weight[1])
    assert step.rounding_nats == at_first
    step.anchor()
    assert step.rounding_nats > 10 * at_first
    assert math.isnan(RelativeSGD(Flow(4), LR, track=False).rounding_nats)


@pytest.mark.parametrize("mean", [0.0, 0.02, -0.02])
@pytest.mark.parametrize("apart", [1e-3, 0.02, 0.2])
def test_moments_give_the_determinant_within_what_they_claim(apart: float, mean: float) -> None:
    K = torch.randn(3, 9, 9, dtype=torch.float64)
    K = apart * K / torch.linalg.matrix_norm(K)[:, None, None] + mean * torch.eye(9, dtype=torch.float64)
    exact = torch.linalg.slogdet(torch.eye(9, dtype=torch.float64) + K / 2).logabsdet
    for found, value in zip(fused.moments(K), exact.tolist(), strict=True):
        second_order, wrong = found.scaled(0.5).log_det()
        assert abs(second_order - value) <= wrong + 1e-15
        assert wrong < apart**3 / 20


def test_moments_do_not_stand_for_a_determinant_that_they_do_not_determine() -> None:
    """Of a matrix far from a multiple of the unit, or one that turns it over."""
    for K in (2 * torch.randn(1, 5, 5, dtype=torch.float64), -2 * torch.eye(5, dtype=torch.float64)[None]):
        assert fused.moments(K)[0].log_det()[1] == math.inf


@pytest.mark.parametrize(("size", "factored"), [(1e-3, False), (0.1, True)])
def test_a_small_step_needs_no_factorisation(monkeypatch: pytest.MonkeyPatch, size: float, factored: bool) -> None:
    K = size * torch.nn.functional.normalize(torch.randn(2, 20, 20), dim=(1, 2))
    exact = torch.linalg.slogdet(torch.eye(20, dtype=torch.float64) + K.double()).logabsdet
    calls, factor = [], torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda A: calls.append(A) or factor(A))
    changes = fused.log_abs_det_changes(K, fused.moments(K), [256, 256], [LR, LR])
    assert bool(calls) is factored
    growth = torch.tensor(1 + LR).double().log()  # as float32 rounds it
    torch.testing.assert_close(changes, exact + 256 * growth, rtol=0, atol=256 * 2**-26)
