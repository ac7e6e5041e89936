"""The time of each operation, on a clock whose every reading is known."""

from collections.abc import Callable, Iterator
from itertools import accumulate, chain, count, cycle
from typing import Any, ClassVar

import pytest
import torch

from stepscale.bench.counting.operation_counts import compiled_here
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.notes import Notes
from stepscale.bench.records.operations import UNKNOWN_ORDER, Kind
from stepscale.bench.timing import operation_times, profiler
from stepscale.bench.timing.log_period import classes_of, counts_of, kinds_by_step, log_here
from stepscale.bench.timing.operation_times import OperationTimes, TimedOperations, cost_of_timing
from tests.support.kineto import HOST, profiler_that_takes, taken
from tests.support.workloads import workload_of


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each reading of the clock is 1 µs after the last, so that an operation takes 1 µs."""
    readings = count(0, 1000)
    monkeypatch.setitem(operation_times.HOST, "wall", lambda: next(readings))
    monkeypatch.setattr(operation_times, "cost_of_timing", lambda now: 0.0)
    yield


@pytest.mark.parametrize("name", ["relative", "kfac", "layerwise"])
@pytest.mark.usefixtures("ticking")
def test_the_seconds_of_all_operations_add_up_kind_by_kind(name: str) -> None:
    """Every operation takes 1 µs: a kind takes as many as its calls, amortised over the period."""
    workload = workload_of(name)
    workload.run(workload.period)
    log = log_here(workload, Notes())
    times = OperationTimes(workload, log, WallClock(), classes_of(log))
    for block in (0, 1, 2):
        times.run(2 * workload.period, block)
    found, counts = times.found(), counts_of(log, 0.0)
    assert found.block == [0, 1, 2]
    assert found.kind_s == pytest.approx([1e-6 * calls for calls in counts.calls], rel=1e-9)
    assert sum(values[0] for values in found.order_s.values()) == pytest.approx(1e-6 * counts.operations, rel=1e-9)


@pytest.mark.usefixtures("ticking")
def test_a_walk_weighs_each_class_by_its_share() -> None:
    """The dear step of ten and two of the cheap ones stand for the period."""
    workload = workload_of("kfac")
    workload.run(workload.period)
    log = log_here(workload, Notes())
    times = OperationTimes(workload, log, WallClock(), classes_of(log))
    times.run(3, 0)
    dear, *cheap = map(len, kinds_by_step(log))
    assert len(set(cheap)) == 1 and dear > cheap[0]
    total = sum(values[0] for values in times.found().order_s.values())
    assert total == pytest.approx(1e-6 * (dear + 9 * cheap[0]) / 10, rel=1e-9)


@pytest.mark.usefixtures("ticking")
def test_seconds_are_told_apart_by_order() -> None:
    workload = workload_of("layerwise")
    workload.run(1)
    log = log_here(workload, Notes())
    log.kinds = [
        Kind(name=kind.name, shapes=kind.shapes, flops=kind.flops, exponent=3.0 if "lu" in kind.name else 1.0)
        for kind in log.kinds
    ]
    times = OperationTimes(workload, log, WallClock(), classes_of(log))
    times.run(1, 0)
    calls = {kind.name: called for kind, called in zip(log.kinds, counts_of(log, 0.0).calls, strict=True)}
    lu = sum(called for name, called in calls.items() if "lu" in name)
    assert lu == 4, "a factorisation and a solve for each of two layers"
    assert times.found().order_s[3] == pytest.approx([1e-6 * lu])
    assert UNKNOWN_ORDER not in times.found().order_s


def test_a_step_that_does_something_else_than_was_logged_is_refused() -> None:
    workload = workload_of("relative")
    workload.run(1)
    log = log_here(workload, Notes())
    times = OperationTimes(workload, log, WallClock(), classes_of(log))
    step = workload.step
    workload.step = lambda batch, mark: (step(batch, mark), torch.ones(1))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"a step ran 29 operations where 28 were logged"):
        times.run(1, 0)


def test_a_compiled_step_is_not_timed_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = workload_of("relative")
    workload.run(1)
    log = log_here(workload, Notes())
    monkeypatch.setattr(operation_times, "compiled_here", lambda: True)
    with pytest.raises(RuntimeError, match="compiled: timed by operation, it would run as it is written"):
        OperationTimes(workload, log, WallClock(), classes_of(log))


def test_whether_anything_was_compiled_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters, "frames", counters["frames"].__class__())
    assert not compiled_here()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    assert compiled_here()


def test_what_timing_costs_is_what_an_idle_operation_takes_more() -> None:
    """By its clock an idle operation takes 1 µs, and 4 µs where it is timed."""
    nothing = torch.zeros(1)
    with TimedOperations(lambda: 0) as call:
        nothing.detach()
    operations = len(call.ns) * operation_times.CALLS
    readings = accumulate(chain([0, 1000 * operations], cycle([0, 4000])))
    assert cost_of_timing(lambda: next(readings)) == 3000


def test_operations_are_timed_inside_backward_and_vmap_too() -> None:
    x = torch.ones(3, requires_grad=True)
    with TimedOperations(lambda: 0) as forward:
        loss = (x * x).sum()
    with TimedOperations(lambda: 0) as backward:
        loss.backward()
    assert len(forward.ns) == 2 and len(backward.ns) >= 3


class Ranges:
    """Ranges of the host, and what a device makes of them: from each 3 µs of kernels, 2 µs apart."""

    names: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self.names.append(name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    @classmethod
    def entries(cls, streams: int = 1) -> list[Any]:
        """On each stream the same at the same time, and a range and an operation that are not ours."""
        found = [taken("epoch", 0, 10**9, annotation=True), taken("aten::mm", 0, 10**6, on=HOST)]
        for stream in range(streams):
            for place, name in enumerate(cls.names):
                start = 10_000 * place
                found.append(taken(name, start, 5_000, stream=stream, annotation=True))
                found.append(taken("one", start, 1_000, stream=stream))
                found.append(taken("other", start + 3_000, 2_000, stream=stream))
        return found


def timer_of_kernels(monkeypatch: pytest.MonkeyPatch, entries: Callable[[], list[Any]]) -> OperationTimes:
    Ranges.names.clear()
    monkeypatch.setattr(operation_times, "record_function", Ranges)
    monkeypatch.setattr(profiler, "profile", profiler_that_takes(entries)[0])
    workload = workload_of("relative")
    workload.run(1)
    log = log_here(workload, Notes())
    times = OperationTimes(workload, log, WallClock(), classes_of(log))
    times.now = None
    return times


@pytest.mark.parametrize("streams", [1, 2])
def test_on_a_gpu_kernels_are_found_by_the_kind_of_their_operation(
    monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    times = timer_of_kernels(monkeypatch, lambda: Ranges.entries(streams))
    times.run(1, 0)
    calls = counts_of(times.log, 0.0).calls
    assert times.found().kind_s == pytest.approx([streams * 3e-6 * called for called in calls])
    assert all(name.startswith("stepscale 0 ") for name in Ranges.names)
    assert not times.on_host


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([taken("stray", 7_000, 10**6, stream=0)], r"of 9\d% of the kernels' time no operation is known"),
        ([taken("elsewhere", 1_000, 10**6, stream=9)], r"of 9\d% of the kernels' time no operation is known"),
        (None, "the profiler sees no kernel"),
    ],
    ids=["between two operations", "on another stream", "nothing seen"],
)
def test_kernels_of_no_operation_leave_no_shares(
    monkeypatch: pytest.MonkeyPatch, more: list[Any] | None, said: str
) -> None:
    entries = lambda: [] if more is None else Ranges.entries() + more  # noqa: E731
    with pytest.raises(RuntimeError, match=said):
        timer_of_kernels(monkeypatch, entries).run(1, 0)
