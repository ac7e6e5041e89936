"""Every file of ``bench/conf/optimizer/library/``: it trains, repeats its work as told, is restored to the bit."""

import sys
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from stepscale.bench.cells.build import build_step
from stepscale.bench.cells.failures import fault_of_start
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.cli import listing
from stepscale.bench.config import CONF
from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.data.photographs import photos
from stepscale.bench.machine import generators
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.notes import Notes
from stepscale.bench.records import tables
from stepscale.bench.records.schema import UNMARKED
from stepscale.bench.timing.log_period import counts_of, log_here
from stepscale.bench.timing.workload import Workload
from stepscale.bench.training import checkpoint, loop
from stepscale.bench.training.evaluation import judged
from stepscale.optimizers import Averaged, Closure, Layerwise, Split, pair
from tests.support.compose import built, composed
from tests.support.jobs import job, logged
from tests.support.libraries import LIBRARY, need
from tests.support.training import training_of

DIM = 8
RELATIVE = "optimizer.direction._target_=stepscale.optimizers.Relative"
MODELS = ["flow", "autoencoder"]
PERIODS = {"soap": 10, "psgd": 10, "splus": 100, "shampoo": 10, "scalable_shampoo": 10, "sophia": 10, "singd": 10}
UNSTEADY = {"lbfgs"}  # whose line search decides how often to evaluate


def need_classes() -> None:
    """Skip a test of a state that holds more than tensors where torch cannot say which classes a file names."""
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        pytest.skip(f"torch {torch.__version__} takes up tensors alone: such a run starts anew")


@cache
def rows(model: str) -> Tensor:
    """Four batches of the model's own data."""
    return built(composed(f"model={model}", f"dim={DIM}")["data"])(dim=DIM, rows=80, seed=0).train


def workload(name: str, model: str = "flow", *words: str) -> Workload:
    need(name)
    config = composed(f"optimizer={name}", f"model={model}", f"dim={DIM}", *words)
    torch.manual_seed(0)
    made = built(config["model"])
    return Workload(made, build_step(config["optimizer"], made), list(rows(model).split(20)))


def parameters(found: Workload) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in found.model.parameters()]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LIBRARY)
def test_it_moves_every_parameter_and_is_restored_bit_for_bit(name: str, model: str, tmp_path: Path) -> None:
    """A period and three steps; then as many again: of the same run twice, and of another, from a checkpoint."""
    whole, path = workload(name, model), tmp_path / "run.pt"
    if name in ("library/singd", "library/scalable_shampoo"):
        need_classes()
    before, steps = parameters(whole), whole.period + 3
    whole.run(whole.period)
    for old, new in zip(before, parameters(whole), strict=True):
        assert new.isfinite().all() and not torch.equal(old, new)
    whole.run(3)
    state = {"model": whole.model.state_dict(), "step": whole.step.state_dict()}
    checkpoint.write(state | {"generators": generators.states(whole.device)}, path)
    block = whole.snapshot()

    whole.run(steps)
    end = parameters(whole)
    whole.restore(block)
    whole.run(steps)
    assert_same(parameters(whole), end)

    again = workload(name, model)
    found = checkpoint.read(path, checkpoint.packages_of(again.step))
    again.model.load_state_dict(found["model"])
    for _ in range(2):  # what is loaded stays whole
        again.step.load_state_dict(found["step"])
    again.position = steps
    generators.restore(found["generators"], again.device)
    again.run(steps)
    assert_same(parameters(again), end)


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", LIBRARY)
def test_its_period_is_the_one_that_it_says(name: str) -> None:
    """Two periods, logged step by step, repeat the one that was logged whole, and nothing shorter does."""
    found, key = workload(name), name.removeprefix("library/")
    if key in UNSTEADY:
        assert not found.facts.period_known
        return
    period = found.facts.period
    assert found.facts.period_known and period == PERIODS.get(key, 1)
    counts, works = counts_of(log_here(found, Notes()), None), []
    for _ in range(2 * period):
        with OperationLog() as log:
            found.run(1)
        works.append((len(log.operations), log.flops))
    assert works[:period] == works[period:]
    assert not any(works[q:] == works[:-q] for q in range(1, period) if period % q == 0)
    assert (counts.operations, counts.flops) == tuple(map(pytest.approx, map(fmean, zip(*works, strict=True))))
    assert counts.flops > 0 and not counts.uncounted


@pytest.mark.parametrize("name", LIBRARY)
def test_its_learning_rate_suits_photographs(name: str) -> None:
    found = workload(name, "flow", "dim=16")
    data = photos(16, 1000, seed=0)
    found.batches = list(data.train.split(100))
    before = found.model.loss(data.held_out).item()  # type: ignore[operator]
    found.run(40)
    assert found.model.loss(data.held_out).item() < before - 5  # type: ignore[operator]


@pytest.mark.parametrize("name", LIBRARY)
def test_it_joins_as_its_file_says(name: str) -> None:
    step: Any = workload(name).step
    found = {
        "a closure alone": step.closure is Closure.FIRST,
        "a closure beside `.grad`": step.closure is Closure.AGAIN,
        "a graph behind `.grad`": step.direction.graph,
        "`split`": isinstance(step.update, Split),
        "the model, which it hooks": any(module._forward_hooks for module in step.direction.model.modules()),
        "`train()` and `eval()`": isinstance(step.update, Averaged) and not isinstance(step.update, Split),
    }
    _, said = listing.comment_parts((CONF / "optimizer" / f"{name}.yaml").read_text())
    assert [said] == ([how for how, true in found.items() if true] or ["`.grad` alone"])


@pytest.mark.parametrize("name", LIBRARY)
def test_no_hydra_object_runs_inside_a_step(name: str) -> None:
    found, entered = workload(name), set()
    found.run(1)

    def watch(frame: FrameType, event: str, argument: object) -> None:
        entered.add(frame.f_globals.get("__name__", "").split(".")[0])

    sys.setprofile(watch)
    try:
        found.run(1)
    finally:
        sys.setprofile(None)
    assert "stepscale" in entered and not entered & {"hydra", "omegaconf"}


@pytest.mark.parametrize("name", ["library/soap", "library/sam", "library/muon", "library/lbfgs"])
def test_it_goes_with_the_relative_gradient(name: str) -> None:
    found = workload(name, "flow", "~optimizer.direction", f"+{RELATIVE}", "+optimizer.direction._partial_=true")
    before = parameters(found)
    found.run(13)
    assert all(
        new.isfinite().all() and not torch.equal(old, new) for old, new in zip(before, parameters(found), strict=True)
    )


@pytest.mark.parametrize(("words", "factor"), [([], 1), (["optimizer.update.adam_debias=false"], 10)])
def test_lamb_begins_with_a_step_of_its_own_length(words: list[str], factor: int) -> None:
    """You et al. 2020, arXiv 1904.00962, algorithm 2: a weight moves by lr times its norm, at most lr times 10."""
    found = workload("library/lamb", "flow", *words)
    before = parameters(found)
    found.run(1)
    for old, new in zip(before, parameters(found), strict=True):
        if old.ndim == 2:
            assert (new - old).norm().item() == pytest.approx(factor / DIM * min(old.norm().item(), 10), rel=1e-4)


def test_a_schedule_free_run_is_judged_as_the_library_judges_it() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    update = partial(schedulefree.AdamWScheduleFree, lr=0.02)
    run = training_of(partial(pair, direction=Layerwise, update=update))
    model = deepcopy(run.model)
    run.run(WallClock(), lambda: None)

    optimizer = update(model.parameters())
    optimizer.train()
    for position in range(run.position):
        optimizer.zero_grad()
        model.loss(run.stream.at(position)).backward()
        optimizer.step()
    trained_at = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.eval()
    for name, value in run.result().state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert not all(torch.equal(value, trained_at[name]) for name, value in model.state_dict().items())
    loss = model.double().eval().loss(run.data.held_out.double()).item()  # type: ignore[union-attr]
    assert run.final().held_out_nats == pytest.approx(run.unit_nats - loss, rel=1e-12)


@pytest.mark.parametrize("name", ["library/splus", "library/schedule_free"])
def test_before_its_first_step_an_average_is_where_it_starts(name: str) -> None:
    """SPlus fails where it is asked for one."""
    found = workload(name)
    assert_same(list(judged(found.model, found.step).parameters()), parameters(found))
    found.run(12)
    average = list(judged(found.model, found.step).parameters())
    assert not any(torch.equal(one, other) for one, other in zip(average, parameters(found), strict=True))


def test_a_run_that_hooks_the_model_is_judged_and_taken_up_again(tmp_path: Path, monkeypatch: Any) -> None:
    """SINGD's hooks see no row of an evaluation, however often there is one, and its matrices come back."""
    SINGD = pytest.importorskip("singd.optim.optimizer").SINGD
    need_classes()
    make = partial(pair, direction=Layerwise, update=partial(SINGD, lr=1e-3, T=3), period=3)
    whole = training_of(make)
    whole.run(WallClock(), lambda: None)
    assert whole.final() == whole.final()
    path, cut = tmp_path / "run.pt", training_of(make, max_steps=25)
    cut.run(WallClock(), lambda: None)
    checkpoint.Checkpoint(path, cut, Notes()).save()
    notes, again = Notes(), training_of(make)
    monkeypatch.setattr(loop, "next_evaluation", lambda position: position + 1)
    checkpoint.Checkpoint(path, again, notes).resume()
    assert not notes and again.position == 25
    again.run(WallClock(), lambda: None)
    assert_same(list(again.model.parameters()), list(whole.model.parameters()))
    assert again.final() == whole.final()
    assert any(module._forward_hooks for module in again.model.modules()), "the run's own hooks are there still"
    assert fault_of_start(again.model, again.stream.at(0)) is None


@pytest.mark.slow
def test_a_cell_of_one_is_measured(tmp_path: Path) -> None:
    need("library/soap")
    found = measure_cell(logged(job(tmp_path, "model=autoencoder", optimizer="library/soap", dim=16)))
    assert found.status == "ok", found.reason
    row = tables.row(found)
    assert row["period"] == 10 and row["ratio"] > 1 and row["cheap_ms"] <= row["peak_ms"]
    assert set(row["phases_ms"]) - {UNMARKED} == {"gradient", "update"}
    assert not found.notes and found.direction.cosine == pytest.approx(1, abs=1e-3)
