import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from stepscale.bench.machine import control_group, cores, description, memory, other_processes

TICK = os.sysconf("SC_CLK_TCK")  # a second, in the kernel's ticks


def test_environment_says_what_numbers_depend_on() -> None:
    found, machine = description.describe(), description.machine("cpu")
    assert found.torch == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert len(found.code) == 16
    assert machine.name == f"{machine.cpu}, {os.cpu_count()} cores" and machine.host and machine.usable_cores


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_allocators_settings_are_recorded_by_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "expandable_segments:True")
    assert description.describe().cuda_allocator == "expandable_segments:True"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_the_growth_of_this_process() -> None:
    """In a process of its own; 200 MiB that were freed before must not hide 100 MiB taken after."""
    code = """
import torch
from stepscale.bench.machine import memory
before = torch.ones(50 * 2**20); del before
peak = memory.start_peak_memory(torch.device("cpu"))
held = torch.ones(25 * 2**20); del held
print(peak().peak_mib)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(100, abs=10)


def test_a_neighbour_is_seen_and_own_work_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def machine_spent(seconds: float) -> None:
        (tmp_path / "stat").write_text(f"cpu  {round(seconds * TICK)} 0 0 999 0 0 0 0 0 0\n")

    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    machine_spent(100)
    own = [5.0]
    watch = other_processes.OtherCpu(idle_cores=0, ours=lambda: own[0])
    generous = other_processes.OtherCpu(idle_cores=1, ours=lambda: own[0])
    start = other_processes.time.perf_counter()
    assert watch.cores() is None, "ticks tell nothing over so short a time"
    monkeypatch.setattr(other_processes.time, "perf_counter", lambda: start + 1.0)
    machine_spent(101.7)
    own[0] += 1.0
    assert watch.cores() == pytest.approx(0.7, rel=0.05)
    own[0] -= 0.5
    assert generous.cores() == pytest.approx(0.2, abs=0.05), "on cores we leave idle they take nothing from us"


def test_busy_is_neither_idle_nor_a_guests_time_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Listed are user nice system idle iowait irq softirq steal guest guest_nice; user and nice hold the guests'."""
    ticks = [1, 20, 300, 4000, 50000, 600000, 7000000, 80000000, 1, 20]
    (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert other_processes.busy_seconds([0]) == pytest.approx(87600321 / TICK)
    (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 {' '.join(map(str, ticks))}\n")
    assert other_processes.busy_seconds([0]) == pytest.approx(87600321 / TICK)


@pytest.mark.parametrize(
    ("allowed", "together", "threads", "others"),
    [
        ({0}, "", 1, 0.5),  # a neighbour has half of the core that ours is pinned to; 62 cores idle, one busy
        ({0, 1, 2, 3, 4, 5, 6, 7}, "", 8, 1.5),  # eight cores of 64, as a batch system gives them
        ({0, 1, 2, 3, 4, 5, 6, 7}, "", 6, 0.0),  # two of them are left to others
        ({2}, "", 1, 0.0),
        ({2}, "1-2", 1, 1.0),  # the neighbour has the other hyper-thread of our core
        ({2}, "1,2", 1, 1.0),
    ],
)
def test_a_neighbour_counts_where_it_meets_us(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: set[int], together: str, threads: int, others: float
) -> None:
    """Of 64 CPUs ours may use some, and works on ``threads`` of them; CPU 0 is half a neighbour's, CPU 1 all of it."""
    cpu, topology = 64, tmp_path / "cpu2" / "topology"

    def spent(seconds: float) -> None:
        of_ours = {number: 1.0 for number in sorted(allowed)[:threads]}
        busy = of_ours | {0: 1.0 if 0 in of_ours else 0.5, 1: 1.0}
        lines = [
            f"cpu{number} {round(busy.get(number, 0) * seconds * TICK)} 0 0 9 0 0 0 0 0 0" for number in range(cpu)
        ]
        (tmp_path / "stat").write_text("\n".join(["cpu 0 0 0 0", *lines, "ctxt 5"]))

    if together:
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(f"{together}\n")
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    clock, ours = [0.0], [0.0]
    monkeypatch.setattr(other_processes.time, "perf_counter", lambda: clock[0])
    spent(1)
    watch = other_processes.OtherCpu(other_processes.idle_cores("cpu", threads), ours=lambda: ours[0])
    clock[0] += 10
    spent(11)
    own = {number: 1.0 for number in sorted(allowed)[:threads]} | {0: 0.5, 1: 0.0}
    ours[0] += 10 * sum(own[number] for number in sorted(allowed)[:threads])
    assert watch.cores() == pytest.approx(others)


def test_where_the_system_does_not_tell_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    watch = other_processes.OtherCpu(idle_cores=0)
    watch._wall -= 10
    assert not watch.readable
    assert watch.cores() is None


def test_a_control_groups_quota_and_limit_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = memory.available_bytes()
    monkeypatch.setattr(control_group, "ROOT", tmp_path)
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cores, "CPUS", tmp_path)  # which says nothing of hyper-threads
    assert cores.available_cores() == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("100000 100000")
    (tmp_path / "memory.max").write_text(str(2**30))
    (tmp_path / "memory.current").write_text(str(2**29))
    assert cores.available_cores() == 1
    assert memory.available_bytes() == 2**29 < free
    (tmp_path / "cpu.max").write_text("max 100000")
    assert cores.available_cores() == len(os.sched_getaffinity(0))


def test_hyper_threads_are_no_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MKL starts one thread a core, so that asking for one a hyper-thread fails."""
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(control_group, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    for cpu, core in {0: "0,4", 1: "1,5", 2: "2,6", 5: "1,5"}.items():
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/core_cpus_list").write_text(core)
    assert cores.available_cores() == 3


def test_a_schedulers_job_has_the_cores_of_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the site does not bind it to them; what binds it to fewer counts as well."""
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(control_group, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert cores.available_cores() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores.available_cores() == cores.threads_for("all", alone=True) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cores.available_cores() == 1


@pytest.mark.parametrize(("device", "idle"), [("cpu", 12), ("cuda", 15)])
def test_a_cell_on_a_gpu_leaves_all_cores_but_one(monkeypatch: pytest.MonkeyPatch, device: str, idle: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert other_processes.idle_cores(device, threads=4) == idle


def test_the_torch_recorded_is_the_one_that_runs() -> None:
    assert description.describe().torch == torch.__version__


def test_of_hyper_threads_one_a_core_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four logical CPUs on two cores: two threads belong on two cores, not on one core's two hyper-threads."""
    monkeypatch.setattr(cores.sys, "platform", "linux")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "_core", lambda cpu: "0-1" if cpu < 2 else "2-3")
    assert [cores.last(threads) for threads in (1, 2)] == [[3], [1, 3]]


@pytest.mark.parametrize(
    ("asked", "variable", "alone", "expected"),
    [
        (3, "2", True, 3),
        (None, None, True, 1),
        (None, None, False, 7),
        (None, "2", True, 2),
        (None, "2", False, 2),
        ("all", "2", True, 7),
    ],
)
def test_how_many_threads_a_cell_has(
    asked: int | str | None, variable: str | None, alone: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(cores, "available_cores", lambda: 7)
    assert cores.threads_for(asked, alone=alone) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], 1), (["threads=3"], 3), (["threads=all"], 7), (["task=train"], 7), (["threads=null"], 1)],
)
def test_a_command_tells_how_many_threads_its_server_needs(
    words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "available_cores", lambda: 7)
    assert cores.guessed_threads(words) == expected
