"""The slow-down that the gate's own check puts around a step, by a clock of its own."""

from types import SimpleNamespace

import pytest
import torch

from stepscale.bench.regression.benchmarks import slow
from stepscale.bench.regression.benchmarks.slow import Slowed, slow_down
from stepscale.models import Batch
from stepscale.optimizers import Facts, Mark, no_mark
from tests.timing.test_workload import workload_of

TICK_S = 1e-6  # what a look at the clock takes


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time_s = [0.0]

    def perf_counter() -> float:
        time_s[0] += TICK_S
        return time_s[0]

    monkeypatch.setattr(slow, "time", SimpleNamespace(perf_counter=perf_counter))
    return time_s


class Ticking:
    """A step whose time alternates as with a period of two."""

    facts = Facts(period=2)

    def __init__(self, now: list[float]) -> None:
        self.now, self.calls = now, list[float]()

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.calls.append(self.now[0])
        self.now[0] += 1e-3 if len(self.calls) % 2 else 4e-3
        mark("update")

    def state_dict(self) -> dict[str, int]:
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = [0.0] * state["calls"]


@pytest.mark.parametrize("place", slow.PLACES)
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_whole_periods_take_so_much_longer(place: str, share: float, now: list[float]) -> None:
    step = Slowed(Ticking(now), place, share)
    for _ in range(2):
        step(torch.empty(0))
    before = now[0]
    for _ in range(10):
        step(torch.empty(0))
    assert step.facts.period == 2
    assert now[0] - before == pytest.approx(5 * 5e-3 * (1 + share), rel=0.01)


def test_it_waits_in_its_place(now: list[float]) -> None:
    marked = list[float]()
    for place, before_s, behind_s in (("direction", 2e-3, 0.0), ("update", 0.0, 2e-3)):
        step = Slowed(inner := Ticking(now), place, 0.5)
        step(torch.empty(0))
        step(torch.empty(0))  # of 4 ms: half of it are 2
        began = now[0]
        inner.calls.append(0.0)  # the next takes 4 ms too
        step(torch.empty(0), lambda phase: marked.append(now[0]))
        assert inner.calls[-1] - began == pytest.approx(before_s, abs=1e-5)
        assert now[0] - marked[-1] == pytest.approx(behind_s, abs=1e-5)


def test_what_it_computes_and_its_state_are_the_steps() -> None:
    plain, slowed = workload_of("kfac"), workload_of("kfac")
    slowed.model.load_state_dict(plain.model.state_dict())
    slowed.batches = plain.batches
    slowed.step = Slowed(slowed.step, "direction", 1e-9)
    boundary = slowed.snapshot()
    slowed.run(3)
    slowed.restore(boundary)
    for workload in (plain, slowed):
        torch.manual_seed(1)
        workload.run(12)
    ours, theirs = slowed.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_nothing_asked_changes_nothing(now: list[float]) -> None:
    step = Ticking(now)
    assert slow_down("")(step) is step
    slowed = slow_down("update=0.05")(step)
    assert isinstance(slowed, Slowed) and (slowed.place, slowed.share) == ("update", 0.05)


@pytest.mark.parametrize("asked", ["direction", "update=0", "update=-1", "gradient=0.1", "0.1", "update=nan"])
def test_a_wrong_word_is_named(asked: str) -> None:
    with pytest.raises(ValueError, match=f"--slow takes direction or update, .*; got '{asked}'"):
        slow_down(asked)
