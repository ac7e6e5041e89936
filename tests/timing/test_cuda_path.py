"""The CUDA path as far as a machine without a GPU can follow it: units, indices, what is asked of torch.cuda."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from stepscale.bench.counting import operation_counts
from stepscale.bench.machine import memory
from stepscale.bench.machine.clock import CudaClock, WallClock, clock_of
from stepscale.bench.notes import Notes
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Memory, OnGpu
from stepscale.bench.timing import energy, profiler, time_step
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


def test_peak_memory_is_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 * 2**20)
    peak = memory.start_peak_memory(CUDA)
    assert reset == [CUDA]
    assert peak() == Memory(peak_mib=5.0, reserved_mib=7.0, read_from="allocator")


def kernel(microseconds: float, device: Any = DeviceType.CUDA, annotation: bool = False) -> SimpleNamespace:
    return SimpleNamespace(device_type=device, is_user_annotation=annotation, self_device_time_total=microseconds)


@pytest.mark.parametrize(
    ("events", "busy_s"),
    [
        ([kernel(60), kernel(40), kernel(1000, annotation=True), kernel(7, DeviceType.CPU)], 100e-6 / time_step.TRACED),
        ([], None),
    ],
    ids=["kernels", "a profiler that sees nothing"],
)
def test_busy_time_is_that_of_kernels(monkeypatch: pytest.MonkeyPatch, events: list, busy_s: float | None) -> None:
    class Profile:
        def __init__(self, activities: list, acc_events: bool) -> None:
            assert acc_events and activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def key_averages(self) -> list:
            return events

    monkeypatch.setattr(profiler, "profile", Profile)
    found = profiler.busy_seconds(workload_of("relative"), time_step.TRACED, lambda: None)
    assert found == (None if busy_s is None else pytest.approx(busy_s))


def test_energy_is_what_the_counter_gained_over_whole_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, now = workload_of("kfac"), [0.0]
    waits: list[int] = []

    def step(batch: Any, mark: Any) -> None:
        now[0] += energy.SECONDS / 25

    workload.step = step  # type: ignore[assignment]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: now[0])
    found = energy.joules(workload, 10, lambda: 500 + 700 * now[0], lambda: waits.append(1))
    assert found == pytest.approx(700 * energy.SECONDS / 25)
    assert workload.position == 30  # three blocks of ten
    assert len(waits) == 4  # before the first reading, and after each block


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


@pytest.mark.parametrize(("busy_s", "bound"), [(0.9e-3, False), (0.5e-3, True), (None, True)])
def test_a_cell_of_which_no_kernel_was_seen_enters_no_fit(busy_s: float | None, bound: bool) -> None:
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
