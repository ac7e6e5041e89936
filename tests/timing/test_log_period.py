"""A step's operations, logged: periods that updates have of their own, counts and orders that are known."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from stepscale.bench.errors import TooSlowError
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import CUBIC, PeriodLog
from stepscale.bench.timing import log_period
from stepscale.bench.timing.log_period import classes_of, counts_of, log_growth, log_here
from stepscale.bench.timing.workload import Workload
from stepscale.models import Flow
from stepscale.optimizers import KFAC, Layerwise, Schedule, pair
from stepscale.optimizers.fisher import mfac
from tests.support.compose import OF_ONE_LENGTH, built, composed, named

DEPTH, BATCH = 2, 5


class Eigen(torch.optim.SGD):
    """An eigendecomposition of each weight every so many steps, and nothing that says so."""

    def __init__(self, parameters: Iterable[nn.Parameter], every: int, random: bool = False) -> None:
        super().__init__(parameters, lr=1e-6)
        self.every, self.random, self.count = every, random, 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        if torch.rand(()).item() < 1 / self.every if self.random else self.count % self.every == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    torch.linalg.eigh(parameter.detach() @ parameter.detach().T)
        self.count += 1


class Squares(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.eye(dim) for _ in range(DEPTH))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            batch = batch @ weight
        return batch.square().mean()


def maker(every: int, random: bool = False, period: int | None = None) -> Callable[[int], Workload]:
    def make(dim: int) -> Workload:
        model = Squares(dim)
        step = pair(model, Layerwise, lambda parameters: Eigen(parameters, every, random), period)
        return Workload(model, step, [torch.ones(BATCH, dim)])

    return make


def eigen_flops(dim: int) -> float:
    """One product and one eigendecomposition for each weight."""
    return DEPTH * (2 + 9) * dim**3


def logged(make: Callable[[int], Workload], dim: int) -> tuple[PeriodLog, Notes]:
    notes = Notes()
    return log_growth(make, dim, math.inf, notes), notes


@pytest.mark.parametrize("dim", [16, 48])
def test_the_period_of_an_update_that_tells_nothing_is_found(dim: int) -> None:
    log, notes = logged(maker(10), dim)
    assert (log.period, log.regular, dict(notes)) == (10, True, {})
    shares = sorted(len(positions) / log.period for positions in classes_of(log))
    assert shares == [0.1, 0.9], "one step in ten is dear"
    products = 3 * DEPTH - 1  # of the loss: no gradient with respect to the rows
    counts = counts_of(log, 0.0)
    assert counts.flops == pytest.approx(products * 2 * BATCH * dim**2 + eigen_flops(dim) / 10, rel=1e-12)
    cubic = sum(
        calls * (kind.flops or 0) for kind, calls in zip(counts.kinds, counts.calls, strict=True) if kind.order == CUBIC
    )
    assert cubic == pytest.approx(eigen_flops(dim) / 10, rel=1e-12)


def test_a_period_that_is_said_is_believed() -> None:
    log, _ = logged(maker(10, period=20), 16)
    assert (log.period, log.regular) == (20, True)


def test_a_period_must_be_a_whole_number_of_steps() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.period must be null or a whole number of at least 1, got 0"):
        maker(10, period=0)(16)


def test_an_update_that_warms_up_is_logged_and_timed_when_it_has() -> None:
    """No eigendecomposition in its first 25 steps, one every 10 from then on."""

    class Late(Eigen):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.every = 10 if self.count >= 25 else 10**9
            super().step()

    def make(dim: int) -> Workload:
        model = Squares(dim)
        step = pair(model, Layerwise, lambda parameters: Late(parameters, 10**9))
        return Workload(model, step, [torch.ones(BATCH, dim)])

    log, _ = logged(make, 16)
    assert (log.period, log.regular) == (10, True)
    assert log.settled >= 25 - 5 and log.settled % 10 == 0
    assert counts_of(log, 0.0).flops == pytest.approx((3 * DEPTH - 1) * 2 * BATCH * 16**2 + eigen_flops(16) / 10)


def test_a_step_that_was_not_watched_long_enough_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_period, "WATCH_S", 0.0)
    notes = Notes()
    log_growth(maker(1), 16, math.inf, notes)
    assert notes["period"].startswith("its update was watched for 4 steps only")
    assert "optimizer.period" in notes["period"]


def test_torch_s_one_update_that_changes_its_work_is_watched() -> None:
    """RAdam does other work from its sixth step on."""

    def make(dim: int) -> Workload:
        model = Squares(dim)
        step = pair(model, Layerwise, lambda parameters: torch.optim.RAdam(parameters, foreach=False))
        return Workload(model, step, [torch.ones(BATCH, dim)])

    log, _ = logged(make, 16)
    assert log.period == 1 and log.settled >= 5
    later = make(16)
    later.run(20)
    assert counts_of(log, 0.0).operations == len(log_here(later, Notes()).sequence)


def test_work_that_does_not_repeat_is_said_to() -> None:
    log, _ = logged(maker(3, random=True), 16)
    assert not log.regular and len(log.lengths) == 16


def test_torch_s_own_updates_are_not_watched() -> None:
    model = Squares(8)
    facts = pair(model, Layerwise, lambda parameters: torch.optim.Adam(parameters)).facts
    assert facts.period_known and facts.period == 1
    assert not pair(model, Layerwise, lambda parameters: Eigen(parameters, 10)).facts.period_known
    assert pair(model, Layerwise, lambda parameters: Eigen(parameters, 10), period=10).facts.period == 10


def test_a_model_of_one_dim_is_counted_and_its_growth_is_not_known() -> None:
    def make(dim: int) -> Workload:
        if dim != 16:
            raise ValueError("this data has 16 columns")
        return maker(10)(dim)

    log, notes = logged(make, 16)
    assert log.period == 10 and log.second_dim is None
    assert notes["growth"] == "ValueError: this data has 16 columns"
    assert {kind.order for kind in log.kinds} == {-1}
    assert counts_of(log, 0.0).flops > 0


def test_a_slow_step_ends_the_logging() -> None:
    with pytest.raises(TooSlowError, match=r"timing\.max_step_s=1e-09"):
        log_growth(maker(10), 16, 1e-9, Notes())


def test_inverses_made_more_often_at_first_are_no_part_of_the_period() -> None:
    flow = Flow(6, depth=DEPTH)
    often = partial(KFAC, damping=1.0, schedule=Schedule(statistics=1, inverse=5, eager=20))
    step = pair(flow, often, lambda parameters: torch.optim.SGD(parameters, lr=1e-6))
    log = log_here(Workload(flow, step, [torch.randn(4, 6)]), Notes())
    names = [log.kinds[kind].name for kind in log.sequence]
    assert len(log.lengths) == 5 and log.settled == 20
    assert names.count("cholesky_inverse") == 2 * DEPTH, "one inversion of A and G in each layer"


def test_a_workload_s_own_period_is_logged_in_place() -> None:
    workload = maker(1)(16)
    log = log_here(workload, Notes())
    assert log.second_dim is None and len(log.sequence) == sum(log.lengths) > 0


# which of the optimizers' files do work that grows as d³, by the algebra of their methods; the README's column of costs
CUBIC_BY_ALGEBRA = {
    **dict.fromkeys(["adam", "sgd_momentum", "nesterov", "layerwise", "naive", "inverse", "stale_inverse"], True),
    **dict.fromkeys(["kfac", "kfac_clipped", "kfac_low_rank", "kfac_whole", "ekfac", "foof"], True),
    **dict.fromkeys(["kldwrm_so", "kldwrm_q", "hessian_free", "lanczos_newton", "learned_rates"], True),
    **dict.fromkeys(["tnt", "tnt_trusted", "shampoo", "mini_block", "mfac"], True),
    **dict.fromkeys(["tnt_dense", "shampoo_dense", "mini_block_dense"], True),
    **dict.fromkeys(["kbfgs", "kbfgs_limited"], True),
    "relative_mfac": False,
    **dict.fromkeys(["relative", "relative_adam", "relative_fused", "relative_momentum"], False),
    "stochastic_trace": True,
    "natural": False,
    "self_normalizing": False,
}


def configured(name: str, dim: int) -> Workload:
    torch.manual_seed(0)
    config = composed(f"optimizer={name}", f"dim={dim}", "batch=20", *OF_ONE_LENGTH.get(name, []))
    model = built(config["model"])
    return Workload(model, built(config["optimizer"])(model), [torch.randn(20, dim) for _ in range(3)])


@pytest.mark.parametrize("name", named("optimizer"))
def test_which_methods_do_cubic_work(name: str) -> None:
    """At dim 32, above the batch of 20: below it, what takes min(B, d) is cubic too."""
    log, notes = logged(partial(configured, name), 32)
    assert not notes
    unknown = {kind.name for kind in log.kinds if kind.order < 0}
    assert not unknown
    assert any(kind.order >= CUBIC for kind in log.kinds) is CUBIC_BY_ALGEBRA[name]
    assert max(kind.order for kind in log.kinds) <= 3


@pytest.mark.parametrize("dim", [27, 32, 37])
def test_a_window_of_gradients_in_pieces_does_no_cubic_work(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one size would leave a rest, whose size grows as it will."""
    monkeypatch.setattr(mfac, "WHOLE", 100)
    log, notes = logged(partial(configured, "relative_mfac"), dim)
    assert not notes and max(kind.order for kind in log.kinds) == 2
