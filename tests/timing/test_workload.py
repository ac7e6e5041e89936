"""Restoring a snapshot must give back the very same continuation."""

from typing import Any

import pytest
import torch

from stepscale.bench.timing.workload import Workload
from stepscale.models import Batch
from stepscale.optimizers import Mark, Stateless, no_mark
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
