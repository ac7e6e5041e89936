"""What ``torch.profiler`` lists of a step: which operations and how often, not how long they take."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from msgspec.structs import replace

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.records import store
from stepscale.bench.records.schema import Operation
from stepscale.bench.report import write
from stepscale.bench.runs import progress
from stepscale.bench.timing import profiler
from stepscale.bench.timing.profiler import BETWEEN, UNLINKED, operations
from tests.support.jobs import job
from tests.support.kineto import HOST, profiler_that_takes, taken
from tests.support.workloads import workload_of


def test_a_steps_operations_are_counted() -> None:
    workload, synchronized = workload_of("relative"), list[int]()
    found = {row.operation: row for row in operations(workload, 4, lambda: synchronized.append(workload.position))}
    assert synchronized == [1, 5]  # one step before the profile
    assert found["sigmoid"].calls == 1
    assert found["addmm"].calls == 2  # both layers' gradients
    assert found["sigmoid"].host_share > 0 and found["sigmoid"].device_share is None
    assert found[BETWEEN].calls is None


def test_a_period_is_profiled_whole() -> None:
    workload = workload_of("kfac")
    found = {row.operation: row for row in operations(workload, 3, lambda: None)}
    assert workload.position == 20
    assert found["linalg_cholesky"].calls == pytest.approx(0.4)  # two factors of two layers, every tenth step


def test_a_python_loop_shows_between_operations() -> None:
    workload = workload_of("relative")
    workload.step = lambda batch, mark: sum(range(300_000))  # type: ignore[assignment, method-assign]
    found = operations(workload, 2, lambda: None)
    assert found[0].operation == BETWEEN and found[0].host_share > 0.5


def test_a_cell_asked_for_it_records_it_and_the_report_tabulates_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        found = measure_cell(job(tmp_path, "timing.profile=true", f"seed={seed}"))
        assert found.status == "ok", found.reason
        store.save(replace(found, identity=str(seed)), tmp_path)
    write.write(tmp_path)
    table = pd.read_csv(tmp_path / "operations.csv")
    assert {"optimizer", "dim", "operation", "calls", "host_share"} <= set(table)
    assert "device_share" not in table
    assert table["operation"].is_unique and table["host_share"].is_monotonic_decreasing
    assert BETWEEN in set(table["operation"])


@pytest.mark.parametrize(("device", "said"), [(None, "host    add 60 %, mm 10 %"), (0.3, "device  mm 30 %, add 0 %")])
def test_details_say_what_takes_most_of_the_device(tmp_path: Path, device: float | None, said: str) -> None:
    found = measure_cell(job(tmp_path))
    found.timing.profile = [
        Operation("add", 1, 0.6, device and 0.0),
        Operation("mm", 1, 0.1, device),
    ]
    assert said in progress.details(found).splitlines()


def test_what_is_not_asked_for_is_not_there(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path))
    assert found.timing.profile is None
    store.save(found, tmp_path)
    write.write(tmp_path)
    assert not (tmp_path / "operations.csv").exists()


def test_a_wrong_word_is_named(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "timing.profile=yes_please"))
    assert "timing.profile must be true or false, got 'yes_please'" in found.reason


def average(key: str, host_us: float, annotation: bool = False) -> Any:
    return SimpleNamespace(
        key=key, count=30, is_user_annotation=annotation, device_type=HOST, self_cpu_time_total=host_us
    )


MM, RANGE = average("aten::mm", 1e5), average("Optimizer.step", 1e5, annotation=True)
OPERATION = taken("aten::mm", 10, on=HOST, number=5)
KERNEL = taken("sgemm", 20, 500_000_000, launched_by=5)
OVERHEAD = taken("Command Buffer Full", 15, on=HOST, number=5)  # seen on an H100, with the operation's own number
RUNTIME = taken("cudaLaunchKernel", 12, on=HOST, number=5, launched_by=5)
GRAPH = taken("replayed", 30, 200_000_000)
NAMED = taken("Optimizer.step", 0, 900_000_000, annotation=True)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([OPERATION, KERNEL], [("mm", 3, 0.05, 0.25), (BETWEEN, None, 0.95, 0)]),
        ([OVERHEAD, RUNTIME, OPERATION, KERNEL], [("mm", 3, 0.05, 0.25), (BETWEEN, None, 0.95, 0)]),
        ([OPERATION, RUNTIME, OVERHEAD, KERNEL], [("mm", 3, 0.05, 0.25), (BETWEEN, None, 0.95, 0)]),
        (
            [OPERATION, KERNEL, GRAPH, NAMED],
            [(BETWEEN, None, 0.95, 0), ("mm", 3, 0.05, 0.25), (UNLINKED, None, 0, 0.1)],
        ),
        ([OPERATION], [(BETWEEN, None, 0.95, None), ("mm", 3, 0.05, None)]),
    ],
    ids=["linked", "a buffer filled up", "and was taken down later", "graph", "no kernels seen"],
)
def test_of_a_gpu_a_kernels_time_is_with_the_operation_that_launched_it(
    monkeypatch: pytest.MonkeyPatch, entries: list[Any], expected: list[tuple[Any, ...]]
) -> None:
    """In a profile of ten steps and, by a clock of its own, two seconds."""
    workload, clock = workload_of("relative"), iter([7.0, 9.0])
    fake, asked = profiler_that_takes(lambda: entries, [MM, RANGE])
    monkeypatch.setattr(profiler, "profile", fake)
    monkeypatch.setattr(profiler, "time", SimpleNamespace(perf_counter=clock.__next__))
    monkeypatch.setattr(workload, "device", torch.device("cuda"))
    found = operations(workload, 10, lambda: None)
    assert asked == [{"use_cpu": True, "use_device": "cuda", "use_kineto": True}]
    by_name = {row.operation: row for row in found}
    for name, calls, host_share, device_share in expected:
        assert by_name[name].calls == calls
        assert by_name[name].host_share == pytest.approx(host_share)
        assert by_name[name].device_share == (device_share if device_share is None else pytest.approx(device_share))
    assert len(found) == len(expected)
