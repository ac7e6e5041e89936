"""What ``torch.profiler`` lists of a step: which operations and how often, not how long they take."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from stepscale.bench import profiling, records, scaling_report
from stepscale.bench.profiling import BETWEEN, dearest
from stepscale.bench.run import measure_cell
from tests.test_run import job
from tests.test_workload import workload_of


def test_a_steps_operations_are_counted_and_their_shares_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LISTED", 1000)
    workload, synchronized = workload_of("relative"), list[bool]()
    found = {row["operation"]: row for row in dearest(workload, 4, lambda: synchronized.append(True))}
    assert synchronized == [True]
    assert workload.position == 4
    assert found["sigmoid"]["calls"] == 1
    assert found["addmm"]["calls"] == 2  # both layers' gradients
    assert found["sigmoid"]["device_share"] is None
    assert found[BETWEEN]["calls"] is None
    assert sum(row["host_share"] for row in found.values()) == pytest.approx(1, abs=1e-6)


def test_a_period_is_profiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LISTED", 1000)
    workload = workload_of("kfac")
    found = {row["operation"]: row for row in dearest(workload, 3, lambda: None)}
    assert workload.position == 10
    assert found["linalg_cholesky"]["calls"] == pytest.approx(0.4)  # two factors of two layers, every tenth step


def test_a_python_loop_shows_between_operations() -> None:
    workload = workload_of("relative")
    workload.step = lambda batch, mark: sum(range(300_000))  # type: ignore[assignment, method-assign]
    found = dearest(workload, 2, lambda: None)
    assert found[0]["operation"] == BETWEEN and found[0]["host_share"] > 0.5


def test_a_cell_asked_for_it_records_it_and_the_report_tabulates_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        found = measure_cell(job(tmp_path, "timing.profile=true", f"seed={seed}"))
        assert found["status"] == "ok", found["reason"]
        records.save(found | {"identity": str(seed)}, tmp_path / "records")
    scaling_report.section(tmp_path, "here")
    table = pd.read_csv(tmp_path / "operations.csv")
    assert {"optimizer", "dim", "operation", "calls", "host_share"} <= set(table)
    assert "device_share" not in table
    assert table["operation"].is_unique and table["host_share"].is_monotonic_decreasing
    assert BETWEEN in set(table["operation"])


def test_what_is_not_asked_for_is_not_there(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path))
    assert "profile" not in found["timing"]
    records.save(found, tmp_path / "records")
    scaling_report.section(tmp_path, "here")
    assert not (tmp_path / "operations.csv").exists()


def test_a_wrong_word_is_named(tmp_path: Path) -> None:
    found = measure_cell(job(tmp_path, "timing.profile=yes_please"))
    assert "timing.profile must be true or false, got 'yes_please'" in found["reason"]


def test_of_a_gpu_a_kernels_time_is_with_the_operation_that_launched_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, key: str, kind: torch.autograd.DeviceType, host_us: float, device_us: float) -> None:  # type: ignore[name-defined]
            self.key, self.device_type, self.count = key, kind, 3
            self.self_cpu_time_total, self.self_device_time_total = host_us, device_us

    class Profile:
        def __init__(self, activities: list[torch.profiler.ProfilerActivity]) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *_: object) -> None: ...

        def key_averages(self) -> list[Event]:
            host, device = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
            return [Event("aten::mm", host, 1, 1e9), Event("sgemm", device, 0, 1e9)]

    workload = workload_of("relative")
    monkeypatch.setattr(profiling, "profile", Profile)
    monkeypatch.setattr(workload, "device", torch.device("cuda"))
    first, second = dearest(workload, 3, lambda: None)
    assert (first["operation"], first["calls"]) == ("mm", 1) and first["device_share"] > 1
    assert second["operation"] == BETWEEN and second["device_share"] == 0
