"""Restoring a snapshot must give back the very same continuation."""

from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

from stepscale.bench.timing.workload import Workload, copied
from stepscale.models import Batch, Classifier
from stepscale.optimizers import Layerwise, Mark, Stateless, no_mark, pair
from tests.support.theirs import Masters, Scalars
from tests.support.workloads import OPTIMIZERS, workload_of

pytestmark = pytest.mark.numerical


def parameters(workload: Workload) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in workload.model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_continuation_after_restore_is_bitwise_the_same(name: str) -> None:
    workload = workload_of(name)
    workload.run(workload.period + 3)
    snapshot = workload.snapshot()
    addresses = [parameter.data_ptr() for parameter in workload.model.parameters()]
    seen = []
    for _ in range(3):  # thrice: a snapshot that the steps write into would show only then
        workload.restore(snapshot)
        workload.run(13)
        seen.append(parameters(workload))
    for other in seen[1:]:
        assert all(torch.equal(one, two) for one, two in zip(seen[0], other, strict=True))
    assert [parameter.data_ptr() for parameter in workload.model.parameters()] == addresses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "update",
    [Masters, partial(torch.optim.Adam, eps=1e-3), partial(torch.optim.SGD, momentum=0.9)],
    ids=["masters", "adam", "momentum"],
)
def test_state_is_restored_in_its_own_type(update: Any, dtype: torch.dtype) -> None:
    """Torch casts it to the weights'; the very state of a step that was never restored is what is right."""
    model = Classifier(5, 2, classes=3).to(dtype)
    batches: list[Batch] = [(torch.randn(6, 5).to(dtype), torch.randint(0, 3, (6,))) for _ in range(2)]
    step = pair(model, Layerwise, partial(update, lr=1e-2))
    workload = Workload(model, step, batches)
    workload.run(3)
    snapshot = workload.snapshot()
    kept = deepcopy(step.update.state_dict()["state"])
    workload.run(4)
    went_on = parameters(workload)
    for _ in range(2):
        workload.restore(snapshot)
        assert all(map(same, kept.values(), step.update.state_dict()["state"].values()))
        workload.run(4)
        assert all(map(torch.equal, went_on, parameters(workload)))
    assert all(map(same, kept.values(), snapshot.step["update"]["state"].values())), "the snapshot is as it was"


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the same bits in the same types."""
    found, there = tree_leaves(one), tree_leaves(other)
    return [part.dtype for part in found] == [part.dtype for part in there] and all(map(torch.equal, found, there))


@pytest.mark.parametrize("name", ["relative_adam", "kfac", "ekfac"])
def test_a_restore_needs_no_memory_for_another_state(name: str) -> None:
    """The state's tensors stay where they are, and the snapshot's are others."""
    workload = workload_of(name)
    workload.run(workload.period)
    snapshot = workload.snapshot()

    def places(state: Any) -> list[int]:
        return [leaf.data_ptr() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor) and leaf.numel()]

    before = places(workload.step.state_dict())
    workload.run(workload.period)
    during = places(workload.step.state_dict())
    workload.restore(snapshot)
    after = places(workload.step.state_dict())
    assert before and after == during
    assert not set(after) & set(places(snapshot.step))


@pytest.mark.parametrize(
    "now",
    [{"a": torch.zeros(2)}, {"a": torch.zeros(1).expand(3)}, {"a": torch.zeros(3), "b": 1}, {"a": 0.5}, {}],
    ids=["another shape", "one number for all", "more", "no tensor", "empty"],
)
def test_a_state_that_is_unlike_the_saved_one_is_given_up_for_a_copy(now: dict[str, Any]) -> None:
    saved = {"a": torch.arange(3.0)}
    found = copied(saved, now)
    assert set(found) == {"a"} and torch.equal(found["a"], saved["a"])
    assert found["a"] is not saved["a"]


def test_a_checkpoint_gives_state_back_in_its_own_type(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Classifier(5, 2, classes=3).bfloat16()
        data: Batch = (torch.randn(6, 5).bfloat16(), torch.randint(0, 3, (6,)))
        step = pair(model, Layerwise, partial(Masters, lr=1e-2))
        step(data)
        if found:
            torch.save({"model": model.state_dict(), "step": step.state_dict()}, tmp_path / "there.pt")
            saved = torch.load(tmp_path / "there.pt", weights_only=True)
            model = Classifier(5, 2, classes=3).bfloat16()
            step = pair(model, Layerwise, partial(Masters, lr=1e-2))
            model.load_state_dict(saved["model"])
            step.load_state_dict(saved["step"])
        for _ in range(5):
            step(data)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *found))


def test_batches_rotate() -> None:
    seen = []
    workload = workload_of("relative")
    workload.step = lambda batch, mark: seen.append(batch.data_ptr())  # type: ignore[assignment, method-assign]
    workload.run(2)
    workload.run(4)
    assert seen == [batch.data_ptr() for batch in workload.batches] * 2


@pytest.mark.parametrize(
    ("period", "least", "steps"), [(1, 1, 1), (1, 2.5, 3), (10, 1, 10), (10, 10, 10), (10, 10.1, 20), (10, 0, 10)]
)
def test_steps_are_rounded_up_to_whole_periods(period: int, least: float, steps: int) -> None:
    workload = workload_of("relative")
    workload.period = period
    assert workload.whole_periods(least) == steps


def test_scalars_and_parameters_of_no_size_are_looked_at() -> None:
    model = Scalars(3)
    workload = Workload(model, pair(model, Layerwise, partial(torch.optim.SGD, lr=0.1)), [torch.randn(4, 3)])
    workload.run(2)
    assert workload.finite()
    with torch.no_grad():
        model.scale.fill_(torch.inf)
    assert not workload.finite()


def test_no_number_is_not_finite() -> None:
    workload = workload_of("relative")
    assert workload.finite()
    with torch.no_grad():
        next(workload.model.parameters())[0, 0] = torch.nan
    assert not workload.finite()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize("name", ["relative", "relative_adam"])
def test_a_compiled_step_moves_the_parameters_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by Dynamo as a compiled run's is, without the compiler that a machine may lack."""
    monkeypatch.setitem(counters, "frames", Counter())  # or no later test of this process could log a step
    compiled_for_real, asked, graphs = torch.compile, [], []

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def traced(function: Any, mode: str) -> Any:
        asked.append(mode)
        return compiled_for_real(function, backend=backend)

    monkeypatch.setattr(torch, "compile", traced)
    written, other = workload_of(name), workload_of(name)
    compiled = Workload(other.model, other.step, written.batches, "reduce-overhead")
    compiled.model.load_state_dict(written.model.state_dict())
    written.run(4)
    compiled.run(1, no_mark)  # as the harness does, so that gradients and state are there
    compiled.run(2)
    there = len(graphs)
    compiled.run(1, lambda phase: None)  # a mark would break the graph: such steps are run as they are written
    assert asked == ["reduce-overhead"]
    for one, two in zip(parameters(written), parameters(compiled), strict=True):
        torch.testing.assert_close(one, two)
    snapshot = compiled.snapshot()
    for _ in range(10):  # more than the compiler would put up with
        compiled.restore(snapshot)
        compiled.run(2)
    assert 0 < there == len(graphs), "compiled anew"
    assert compiled.graphs is not None and compiled.graphs >= there
    assert written.graphs is None


def test_steps_that_mark_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, mode: lambda batch: seen.append("compiled"))
    seen: list[str] = []

    class Written(Stateless):
        def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
            mark("written")

    other = workload_of("relative")
    workload = Workload(other.model, Written(), other.batches, "default")
    workload.run(2)
    workload.run(1, seen.append)
    assert seen == ["compiled", "compiled", "written"]
