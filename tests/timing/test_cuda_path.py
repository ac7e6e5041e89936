"""The CUDA path as far as a machine without a GPU can follow it: units, indices, what is asked of torch.cuda."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stepscale.bench.counting import operation_counts
from stepscale.bench.machine import memory
from stepscale.bench.machine.clock import CudaClock, WallClock, clock_of
from stepscale.bench.notes import Notes
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Memory, OnGpu
from stepscale.bench.timing import energy, profiler, time_step
from tests.support.kineto import HOST, profiler_that_takes, taken
from tests.support.synthetic import SETTINGS, record
from tests.support.workloads import workload_of

CUDA = torch.device("cuda")


def test_cuda_clock_reads_events_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            recorded.append(stream)

        def elapsed_time(self, other: "Event") -> float:
            return 2.5  # torch's are milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = clock_of(CUDA)
    assert isinstance(clock, CudaClock)
    assert clock.seconds(clock.stamp(), clock.stamp()) == pytest.approx(2.5e-3)
    assert recorded == ["stream of cuda"] * 2


def test_wall_clock_counts_seconds() -> None:
    clock = clock_of(torch.device("cpu"))
    assert isinstance(clock, WallClock)
    assert clock.seconds(1_000_000, 3_000_000) == pytest.approx(2e-3)


def test_a_memory_limit_is_a_share_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8 * 2**30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: asked.append((share, index))
    )
    memory.limit_memory(None, CUDA)
    memory.limit_memory(2, CUDA)
    memory.limit_memory(100, CUDA)
    assert asked == [(0.25, 3), (1.0, 3)]


def test_peak_memory_is_the_allocators_above_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    reset, there = [], [2 * 2**20]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: there[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 * 2**20)
    peak = memory.start_peak_memory(CUDA)
    there[0] = 4 * 2**20  # a model that was made since
    assert reset == [CUDA]
    assert peak() == Memory(peak_mib=3.0, reserved_mib=7.0, read_from="allocator")


def test_a_step_is_not_charged_with_what_the_device_had_yet_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now, queued = [0.0], [5.0]  # seconds of the model's initialisation

    def run(steps: int) -> None:
        queued[0] += 2.0 * steps

    def synchronize() -> None:
        now[0] += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr(time_step.time, "perf_counter", lambda: now[0])
    clock: Any = SimpleNamespace(synchronize=synchronize)
    workload: Any = SimpleNamespace(run=run)
    assert time_step._wall_seconds(clock, workload, 3) == 6.0


@pytest.mark.parametrize(
    ("entries", "busy_s"),
    [
        (
            [
                taken("sgemm", 0, 60_000),
                taken("Memset", 70_000, 40_000, stream=13),
                taken("Optimizer.step", 0, 1_000_000, annotation=True),
                taken("aten::mm", 0, 7_000, on=HOST),
            ],
            100e-6 / time_step.TRACED,
        ),
        ([], None),
    ],
    ids=["kernels", "a profiler that sees nothing"],
)
def test_busy_time_is_that_of_kernels(monkeypatch: pytest.MonkeyPatch, entries: list, busy_s: float | None) -> None:
    fake, asked = profiler_that_takes(lambda: entries)
    monkeypatch.setattr(profiler, "profile", fake)
    workload = workload_of("relative")
    monkeypatch.setattr(workload, "device", CUDA)
    found = profiler.busy_seconds(workload, time_step.TRACED, lambda: None)
    assert found == (None if busy_s is None else pytest.approx(busy_s))
    assert asked == [{"use_cpu": False, "use_device": "cuda", "use_kineto": True}]


class Counter:
    """A counter of 700 W that moves ten times a second, on a clock of which a step takes 30 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(energy.time, "perf_counter", lambda: self.now)
        self.workload = workload_of("kfac")
        self.workload.step = self.step  # type: ignore[assignment]

    def step(self, batch: Any, mark: Any) -> None:
        self.now += 0.03

    def read(self) -> float:
        return 500 + 70 * int(self.now / 0.1)


def test_energy_is_what_the_counter_gained_from_a_move_to_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, waits = Counter(monkeypatch), list[float]()
    found = energy.joules(counter.workload, 1, counter.read, lambda: waits.append(counter.now))
    assert waits[0] == 0.0 and waits[4] == pytest.approx(0.12)  # it has moved for the first time
    assert waits[-1] == pytest.approx(0.72)  # the first move half a second later
    assert found == pytest.approx(21)  # 700 W for 30 ms
    assert counter.workload.position == len(waits) - 1


def test_a_counter_that_stands_still_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    with pytest.raises(RuntimeError, match="the counter of energy has stood still at 12 J for 2 s"):
        energy.joules(counter.workload, 10, lambda: 12.0, lambda: None)


def test_the_counter_is_of_the_device_that_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def handle(uuid: str) -> str:
        if uuid != "GPU-1234":
            raise NVMLError
        return "handle"

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2_500,  # NVML's are millijoules
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    read = energy.energy_counter(CUDA)
    assert read is not None
    assert read() == 2.5
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="other"))
    assert energy.energy_counter(CUDA) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.energy_counter(CUDA) is None


def test_what_a_gpu_does_not_tell_loses_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("CUPTI is in use")

    monkeypatch.setattr(time_step, "busy_seconds", fails)
    monkeypatch.setattr(time_step, "energy_counter", lambda device: None)
    workload = workload_of("relative")
    clock = WallClock()
    cell = time_step._Cell(workload, None, clock, SETTINGS, workload.snapshot(), Notes(), lambda: None, None)
    monkeypatch.setattr(workload, "device", CUDA)
    made, notes = record("relative", 64, 0, 1e-3).timing, Notes()
    cell.measure_extras(made, notes)
    assert made.gpu == OnGpu(busy_s=None, energy_j=None)
    assert notes == {"busy time": "RuntimeError: CUPTI is in use"}


@pytest.mark.parametrize(("busy_s", "bound"), [(0.9e-3, False), (0.5e-3, True), (None, None)])
def test_whether_a_step_waits_for_its_host_is_unknown_where_no_kernel_was_seen(
    busy_s: float | None, bound: bool | None
) -> None:
    made = record("relative", 64, 0, 1e-3, device="cuda")
    made.timing.gpu = OnGpu(busy_s=busy_s)
    assert tables.row(made)["launch_bound"] is bound


@pytest.mark.parametrize(
    ("operation", "args", "asked", "waits"),
    [
        (torch.ops.aten._to_copy, ["cuda"], {"device": torch.device("cpu")}, True),
        (torch.ops.aten._to_copy, ["cuda"], {"dtype": torch.float64}, False),
        (torch.ops.aten._to_copy, ["cpu"], {"device": torch.device("cpu")}, False),
        (torch.ops.aten.copy_, ["cpu", "cuda"], {}, True),
        (torch.ops.aten.copy_, ["cuda", "cpu"], {}, False),
        (torch.ops.aten.add, ["cuda", "cuda"], {}, False),
    ],
)
def test_a_copy_to_the_host_counts_as_a_wait(operation: Any, args: list[str], asked: Any, waits: bool) -> None:
    tensors = [SimpleNamespace(device=torch.device(name)) for name in args]
    assert operation_counts._brings_to_host(operation, tensors, asked) is waits
