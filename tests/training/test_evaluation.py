"""What a run is judged by: eval mode, an update's own average, and generators that training does not notice."""

import random
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.machine import generators
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.notes import Notes
from stepscale.bench.timing.gradient_cosine import agreement
from stepscale.bench.timing.workload import Workload
from stepscale.bench.training import evaluation, loop
from stepscale.bench.training.checkpoint import packages_of
from stepscale.bench.training.evaluation import mean_log_likelihood
from stepscale.bench.training.loop import Training
from stepscale.models import GaussianPosterior, ThermalState
from stepscale.optimizers import Layerwise, LearnedRates, MomentumSchedule, TemperatureSequence, pair
from tests.support.compose import composed
from tests.support.training import ADAM, job, training_of

pytestmark = pytest.mark.numerical


class Network(nn.Module):
    """Rows from themselves, by way of a layer that behaves otherwise while it trains."""

    def __init__(self, dim: int, part: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), part, nn.Linear(dim, dim))

    def loss(self, batch: Tensor) -> Tensor:
        return (self.layers(batch) - batch).square().sum(1).mean()


class Noisy(Network):
    """Draws from every generator there is, as a user's model may."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, nn.Dropout(0.5))

    def loss(self, batch: Tensor) -> Tensor:
        noise = torch.randn_like(batch) + random.random() + np.random.standard_normal()
        return super().loss(batch + 0.1 * noise)


class Plane(nn.Module):
    """A loss that is linear in its parameters, so that a gradient is the batch's mean wherever it is taken."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim))

    def loss(self, batch: Tensor) -> Tensor:
        return batch.mean(0) @ self.weight


class ScheduleFree(torch.optim.Optimizer):
    """Defazio et al. 2024, arXiv 2405.15682: gradients at y = (1 - β) z + β x, x the mean of all z but the first."""

    def __init__(self, parameters: Any, lr: float, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "training": False, "count": 0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["training"]:
                raise RuntimeError("not in train mode")
            group["count"] += 1
            for y in group["params"]:
                state, beta = self.state[y], group["beta"]
                z = state.setdefault("z", y.clone())
                x = (y - (1 - beta) * z) / beta
                z -= group["lr"] * y.grad
                x.lerp_(z, 1 / group["count"])
                y.copy_((1 - beta) * z + beta * x)

    def train(self) -> None:
        self._move(True, lambda beta: 1 - beta)

    def eval(self) -> None:
        self._move(False, lambda beta: 1 - 1 / beta)

    @torch.no_grad()
    def _move(self, training: bool, share: Any) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["training"] is not training else ():
                if "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], share(group["beta"]))
            group["training"] = training


DROPPED, NORMED = lambda dim: Network(dim, nn.Dropout(0.5)), lambda dim: Network(dim, nn.BatchNorm1d(dim))
FREE = partial(pair, direction=Layerwise, update=partial(ScheduleFree, lr=0.01))


def trained(build: Any, make: Any = ADAM, **changes: Any) -> Training:
    run = training_of(make, build=build, **changes)
    run.run(WallClock(), lambda: None)
    return run


@pytest.mark.parametrize("build", [DROPPED, NORMED, Noisy], ids=["dropout", "batch norm", "noise"])
def test_a_run_is_judged_in_eval_mode_and_twice_the_same(build: Any) -> None:
    run = trained(build)
    assert run.model.training, "which goes on training"
    found = run.final()
    assert run.final() == found
    exact = deepcopy(run.model).double().eval()
    with generators.kept(torch.device("cpu"), 0):
        assert found.held_out_nats == pytest.approx(-exact.loss(run.data.held_out.double()).item(), rel=1e-12)


def test_a_likelihood_is_of_rows_whatever_they_are_evaluated_with() -> None:
    """In training mode a batch norm's rows depend on each other, and the mean is none of halves."""
    run = trained(NORMED)
    exact, rows = run.result().double(), run.data.held_out
    half = len(rows) // 2
    halves = [mean_log_likelihood(exact, part) for part in (rows[:half], rows[half : 2 * half])]  # type: ignore[arg-type]
    whole = mean_log_likelihood(exact, rows[: 2 * half])  # type: ignore[arg-type]
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-12)


@pytest.mark.parametrize(("build", "make"), [(DROPPED, ADAM), (Noisy, ADAM), (NORMED, FREE)])
def test_training_does_not_notice_how_much_or_how_often_it_is_judged(
    build: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for rows, apart in ((100, 1), (7, 1), (100, 20)):
        monkeypatch.setattr(loop, "next_evaluation", lambda position, apart=apart: position + apart)
        random.seed(0)
        np.random.seed(0)
        ends.append(trained(build, make, evaluation_rows=rows).model.state_dict())
    for other in ends[1:]:
        assert all(torch.equal(value, other[name]) for name, value in ends[0].items())


def test_a_schedule_free_run_is_judged_at_its_average() -> None:
    run = trained(Plane, FREE)
    z, points = training_of(FREE, build=Plane).model.weight.detach().double(), []
    for position in range(60):
        z = z - 0.01 * run.stream.at(position).double().mean(0)  # type: ignore[union-attr]
        points.append(z)
    average = torch.stack(points).mean(0)
    held_out = run.data.held_out.double()  # type: ignore[union-attr]
    assert run.final().held_out_nats == pytest.approx(-(held_out.mean(0) @ average).item(), rel=1e-4)
    assert not torch.allclose(run.model.weight.double(), average, rtol=1e-4), "it trains elsewhere"


def test_with_patience_the_best_is_kept_as_it_was_judged() -> None:
    run = trained(Plane, FREE, patience=5)
    best = max(run.curve.validation_nats)
    run.data = run.data._replace(validation=run.data.validation[:100])
    assert run.final().validation_nats == best


def test_only_steps_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(WallClock):
        now = 0

        def stamp(self) -> int:
            return Told.now

    def takes(seconds: float, call: Any) -> Any:
        def slow(*arguments: Any) -> Any:
            Told.now += round(seconds * 1e9)
            return call(*arguments)

        return slow

    run = training_of(ADAM)
    monkeypatch.setattr(loop, "mean_log_likelihood", takes(1e3, loop.mean_log_likelihood))
    monkeypatch.setattr(run, "step", takes(0.5, run.step))
    monkeypatch.setattr(run.stream, "at", takes(1e3, run.stream.at))
    run.run(Told(), lambda: None)
    assert run.seconds == pytest.approx(0.5 * 60) and run.curve.seconds[-1] == run.seconds


def test_the_cosine_is_of_two_gradients_of_one_loss() -> None:
    """Each with its own dropout they would differ, however exact the direction is.

    And outside of a training run, too, a schedule-free update is in train mode.
    """
    model = Network(6, nn.Dropout(0.5)).double()
    step = pair(model, Layerwise, partial(ScheduleFree, lr=1e-3))
    found = agreement(Workload(model, step, [torch.randn(20, 6, dtype=torch.float64)]), 6, Notes())
    assert found.cosine == pytest.approx(1, abs=1e-12)


class Vanishing(Network):
    """A likelihood that is none once it is of all rows."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, nn.Identity())

    def loss(self, batch: Tensor) -> Tensor:
        return super().loss(batch) * (1.0 if len(batch) <= 200 else torch.nan)


def test_a_run_whose_last_likelihood_is_none_has_diverged_in_every_figure(tmp_path: Path) -> None:
    target = f"model._target_={__name__}.Vanishing"
    found = measure_cell(job(tmp_path, target, "~model.depth", optimizer="layerwise", dim=16))
    assert found.status == "diverged" and "the log-likelihood is nan after step 40" in (found.reason or "")
    assert found.training.stopped_by == "divergence" and found.training.final is None
    assert found.training.steps == 40 and np.isfinite(found.training.curve.held_out_nats).all()


def test_an_update_within_other_steps_is_judged_apart_and_its_package_known() -> None:
    """After its first step Nesterov's momentum is judged at the start less lr times the gradient there."""
    model = ThermalState(1, 2).double()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    slopes = torch.autograd.grad(model.loss(torch.zeros(1, 1)), list(model.parameters()))
    rates = partial(LearnedRates, step=partial(pair, direction=Layerwise, update=partial(MomentumSchedule, lr=0.1)))
    step = TemperatureSequence(model, partial(rates, rule="cauchy"), betas=[1.0], interval=1)
    step(torch.zeros(1, 1))
    lr = step.step.update.param_groups[0]["lr"]  # type: ignore[attr-defined]
    for found, θ, slope in zip(evaluation.judged(model, step).parameters(), start, slopes, strict=True):
        torch.testing.assert_close(found.detach(), θ - lr * slope, rtol=1e-12, atol=1e-12)
    assert packages_of(TemperatureSequence(model, FREE, betas=[1.0], interval=1)) == {__name__.partition(".")[0]}


def test_a_posteriors_bound_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is of all its rows, whichever it is given: ``rows`` is the batch in its file."""
    assert composed("model=posterior", "batch=50")["model"]["rows"] == 50
    model = GaussianPosterior(3, rows=20).double()
    torch.nn.init.normal_(model.mean)
    batch = torch.randn(20, 3), torch.randint(0, 2, (20,)).double()
    whole = evaluation.mean_log_likelihood(model, batch)
    assert whole == pytest.approx(-model.loss((batch[0].double(), batch[1])).item(), rel=1e-9)
    monkeypatch.setattr(evaluation, "ROWS", 7)
    assert evaluation.mean_log_likelihood(model, batch) == pytest.approx(whole, rel=1e-9)
