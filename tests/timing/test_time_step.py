"""The timing code on a simulated clock: what it reports must be the truth that was put in."""

import math

import pytest
import torch
from torch import nn

from stepscale.bench.errors import DivergedError, TooSlowError
from stepscale.bench.machine import other_processes
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.notes import Notes
from stepscale.bench.records.headline import MIN_BLOCKS, estimate
from stepscale.bench.records.schema import UNMARKED, Memory
from stepscale.bench.timing import phases, time_step
from stepscale.bench.timing.limit import Limit
from stepscale.bench.timing.time_step import Settings
from stepscale.bench.timing.workload import Workload
from tests.support.synthetic import SETTINGS, SimulatedClock, SimulatedLimit, SimulatedStep, measured
from tests.support.workloads import workload_of


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process: the real load over simulated seconds would label blocks contended by chance."""
    monkeypatch.setattr(other_processes, "busy_seconds", lambda cpus: 0.0)


def headline(found: time_step.Measured) -> float:
    return estimate(found.timing.blocks).step_s


def test_a_steady_step_is_timed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, [2e-3], limit_s=1e-3)
    judged = estimate(found.timing.blocks)
    assert judged.step_s == pytest.approx(2e-3, rel=1e-9)
    assert judged.ratio == pytest.approx(2, rel=1e-9)
    assert found.timing.stopped_by == "precision"
    assert MIN_BLOCKS <= len(found.timing.blocks.step_s) <= 10, "no longer than the load takes to be read"


def test_a_periodic_step_is_amortised_over_whole_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median step would say 1.0 ms; the truth is 3.9 ms."""
    found = measured(monkeypatch, [30e-3, *[1e-3] * 9])
    assert not found.timing.composed
    assert headline(found) == pytest.approx(3.9e-3, rel=1e-9)
    assert set(found.timing.blocks.steps) == {10}
    peak, cheap = found.timing.trace
    assert (peak.positions, cheap.positions) == ([0], list(range(1, 10)))
    assert peak.phases_s == pytest.approx({"gradient": 1e-3, "inverse": 29e-3})
    assert cheap.phases_s == pytest.approx({"gradient": 1e-3})


def test_a_period_too_long_for_the_time_limit_is_composed_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.2, *[10e-3] * 49]
    found = measured(monkeypatch, seconds)
    assert found.timing.composed
    assert headline(found) == pytest.approx(sum(seconds) / 50, rel=1e-6)
    assert set(found.timing.blocks.steps) == {1 + time_step.WALKED}, "a walk ends soon after the last class"


def test_work_at_several_intervals_is_composed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [(0.03 if k % 6 == 0 else 0.02 if k % 2 == 0 else 0.01) for k in range(6)]
    monkeypatch.setattr(SimulatedStep, "__call__", three_costs)
    found = measured(monkeypatch, seconds, settings=Settings(0.01, 0.2, 0.1, 0.01, 10))
    assert found.timing.composed
    assert headline(found) == pytest.approx(sum(seconds) / 6, rel=1e-6)


def three_costs(self: SimulatedStep, batch: object, mark: time_step.Callable) -> None:
    seconds = self.all_seconds[self.count % self.facts.period]
    torch.mm(torch.ones(1, round(seconds * 100)), torch.ones(round(seconds * 100), 1))
    self.clock.move(seconds)
    mark("gradient")
    self.count += 1


def test_noise_stops_at_the_time_limit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, [15e-3], clock=SimulatedClock(noise=0.3))
    assert found.timing.stopped_by == "time_limit"
    judged = estimate(found.timing.blocks)
    assert judged.ratio_low < 15 < judged.ratio_high


def test_the_first_step_has_a_column_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_first(self: SimulatedStep, batch: object, mark: time_step.Callable = lambda phase: None) -> None:
        first = self.clock.now == 0
        self.clock.move(11.0 if first else 1e-3)  # compilation: longer than a step may take
        mark("gradient")

    monkeypatch.setattr(SimulatedStep, "__call__", slow_first)
    found = measured(monkeypatch, [1e-3])
    assert found.timing.first_step_s == pytest.approx(11.0)
    assert headline(found) == pytest.approx(1e-3, rel=1e-9)


def test_warm_up_lasts_until_times_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    def warming(self: SimulatedStep, batch: object, mark: time_step.Callable = lambda phase: None) -> None:
        self.clock.move(1e-3 * (1 + math.exp(-self.clock.now / 0.03)))
        mark("gradient")

    monkeypatch.setattr(SimulatedStep, "__call__", warming)
    found = measured(monkeypatch, [1e-3], settings=Settings(0.01, 0.5, 0.02, 0.01, 10))
    assert headline(found) == pytest.approx(1e-3, rel=0.3), "cold steps took up to 2 ms"
    assert found.timing.warmup_s > 0.03


def test_a_slow_step_ends_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooSlowError, match=r"took 11 s; timing.max_step_s is 10"):
        measured(monkeypatch, [11.0])


def test_what_follows_the_last_mark_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def tail(self: SimulatedStep, batch: object, mark: time_step.Callable = lambda phase: None) -> None:
        self.clock.move(1e-3)
        mark("gradient")
        torch.ones(2, 2) @ torch.ones(2, 1 + self.count % self.facts.period)  # every position a class of its own
        self.clock.move(1e-3)
        self.count += 1

    monkeypatch.setattr(SimulatedStep, "__call__", tail)
    found = measured(monkeypatch, [1e-3] * 100, settings=Settings(0.01, 0.2, 0.02, 0.01, 10))
    assert found.timing.composed
    assert headline(found) == pytest.approx(2e-3, rel=1e-6)
    assert found.timing.trace[0].phases_s == pytest.approx({"gradient": 1e-3, "unmarked": 1e-3})


def test_work_without_a_count_makes_no_two_steps_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """``eig`` has no rule: a period with one every 5 steps must be walked whole."""

    def eigen(self: SimulatedStep, batch: object, mark: time_step.Callable = lambda phase: None) -> None:
        torch.linalg.eig(torch.eye(2))
        self.clock.move(self.all_seconds[self.count % self.facts.period])
        mark("gradient")
        self.count += 1

    monkeypatch.setattr(SimulatedStep, "__call__", eigen)
    found = measured(monkeypatch, [0.05, 0.01, 0.01, 0.03, 0.01], settings=Settings(0.01, 0.2, 0.02, 0.01, 10))
    assert headline(found) == pytest.approx(0.11 / 5, rel=1e-6)


def test_parameters_that_are_no_numbers_end_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(self: SimulatedStep, batch: object, mark: time_step.Callable = lambda phase: None) -> None:
        self.clock.move(1e-3)
        mark("gradient")
        with torch.no_grad():
            model.weight.mul_(1e30)

    monkeypatch.setattr(SimulatedStep, "__call__", diverging)
    clock = SimulatedClock()
    monkeypatch.setattr(time_step.time, "perf_counter", clock.stamp)
    model = nn.Linear(1, 1)
    workload = Workload(model, SimulatedStep(clock, [1e-3]), [torch.zeros(1, 1)])
    with pytest.raises(DivergedError, match="not finite"):
        time_step.measure(
            workload,
            lambda: SimulatedLimit(clock, 1e-3),
            clock,
            SETTINGS,
            lambda: Memory(peak_mib=None, read_from="nothing"),
            Notes(),
        )


def test_contended_blocks_are_labelled_and_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its first 0.1 s a neighbour doubles the step; the estimate is of the blocks after it."""

    class Neighbour:
        readable = True

        def __init__(self, idle_cores: int) -> None:
            pass

        def cores(self) -> float:
            return 1.0 if clock.now < end else 0.0

        def pause(self) -> None:
            pass

        def resume(self) -> None:
            pass

    def disturbed(self: SimulatedStep, batch: object, mark: time_step.Callable = lambda phase: None) -> None:
        self.clock.move(2e-3 if begin < self.clock.now < end else 1e-3)
        mark("gradient")

    clock, begin, end = SimulatedClock(), 0.15, 0.35
    monkeypatch.setattr(time_step, "OtherCpu", Neighbour)
    monkeypatch.setattr(SimulatedStep, "__call__", disturbed)
    found = measured(monkeypatch, [1e-3], clock=clock)
    blocks = found.timing.blocks
    assert max(blocks.step_s) > 1.5e-3, "the disturbed blocks stay in the record"
    judged = estimate(blocks)
    assert judged.step_s == pytest.approx(1e-3, rel=1e-6)
    assert not judged.contended


def test_without_a_limit_the_step_is_timed_alone_until_it_is_precise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, [2e-3], limit_s=None)
    judged = estimate(found.timing.blocks)
    assert (found.timing.blocks.limit_s, found.counts.limit_flops) == ([], None)
    assert judged.step_s == pytest.approx(2e-3) and math.isnan(judged.ratio)
    assert found.timing.stopped_by == "precision"


def test_peak_memory_is_taken_before_the_limit_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    clock = SimulatedClock()
    monkeypatch.setattr(time_step.time, "perf_counter", clock.stamp)
    workload = Workload(nn.Linear(1, 1), SimulatedStep(clock, [1e-3]), [torch.zeros(1, 1)])

    def limit() -> Limit:
        order.append("limit")
        return SimulatedLimit(clock, 1e-3)  # type: ignore[return-value]

    def memory() -> Memory:
        order.append("memory")
        return Memory(peak_mib=None, read_from="nothing")

    time_step.measure(workload, limit, clock, SETTINGS, memory, Notes())
    assert order == ["memory", "limit"]


@pytest.mark.parametrize("name", ["precision", "time_limit_s", "block_s"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"timing\.{name} must be a positive number, got 0"):
        Settings(**{**vars(SETTINGS), name: 0})


def test_a_compiled_step_is_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked, it would run as it is written, and those phases pass for the compiled step's."""
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    written = workload_of("relative")
    compiled = Workload(written.model, written.step, written.batches, "default")
    for workload, expected in ((written, {"gradient", "update"}), (compiled, {UNMARKED})):
        traced = phases.trace(workload, WallClock(), 3)
        assert set().union(*(found for _, found in traced)) - {UNMARKED} == expected - {UNMARKED}
        assert len(traced) == 3
