"""Which clock says how long a step takes."""

import time

import pytest
import torch

from stepscale.bench.machine.clock import CpuClock, Waits, WallClock, clock_of, name_of, watched


@pytest.mark.parametrize(
    ("seen", "suits"),
    [
        (Waits(wall_s=1.0, cpu_s=0.99, switches=0), True),
        (Waits(wall_s=3.0, cpu_s=1.0, switches=2), True),  # a neighbour had the core
        (Waits(wall_s=3.0, cpu_s=1.0, switches=10), False),  # it slept in every step
        (Waits(wall_s=1.0, cpu_s=1.9, switches=0), False),  # two cores worked
    ],
)
def test_cpu_time_suits_what_neither_waits_nor_uses_more_cores(seen: Waits, suits: bool) -> None:
    assert seen.suit_cpu_time(periods=10) is suits


def test_a_step_that_sleeps_is_seen_to_wait() -> None:
    seen = watched(lambda steps: [time.sleep(0.005) for _ in range(steps)] and None, 4)
    assert seen.switches >= 4 and seen.wall_s >= 0.02 > seen.cpu_s
    assert not seen.suit_cpu_time(4)


def test_one_thread_of_a_cpu_is_timed_by_its_cpu_time() -> None:
    cpu = torch.device("cpu")
    assert name_of(clock_of(cpu, 1)) == "cpu" and name_of(clock_of(cpu, 2)) == "wall"
    assert name_of(clock_of(cpu)) == "wall", "training is as long as a user waits"


def test_cpu_time_stands_still_while_the_process_sleeps() -> None:
    for clock, least, most in ((CpuClock(), 0.0, 0.02), (WallClock(), 0.05, 60.0)):
        start = clock.stamp()
        time.sleep(0.05)
        assert least <= clock.seconds(start, clock.stamp()) <= most
