import subprocess
import sys

import pytest
import torch

from stepscale.bench import contention, environment


def test_environment_says_what_numbers_depend_on() -> None:
    found = environment.describe(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert len(found["code"]) == 16


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_the_growth_of_this_process() -> None:
    """In a process of its own; 200 MiB that were freed before must not hide 100 MiB taken after."""
    code = """
import torch
from stepscale.bench import environment
before = torch.ones(50 * 2**20); del before
peak = environment.start_peak_memory(torch.device("cpu"))
held = torch.ones(25 * 2**20); del held
print(peak()["peak_mib"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(100, abs=10)


@pytest.mark.skipif(sys.platform != "linux", reason="load is read from /proc")
def test_a_neighbour_is_seen_and_own_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, others = contention.OtherCpu(), 0.0
    start = contention.time.perf_counter()
    assert watch.cores() is None, "ticks tell nothing over so short a time"
    monkeypatch.setattr(contention.time, "perf_counter", lambda: start + 1.0)
    busy = contention.busy_elsewhere()
    assert busy is not None
    monkeypatch.setattr(contention, "busy_elsewhere", lambda: watch._busy + 0.7 + others)
    assert watch.cores() == pytest.approx(0.7, rel=0.05)
