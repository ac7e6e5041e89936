"""What only a CUDA device shows: cells measured on one, and steps that write there what they write on a CPU."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.machine.clock import CudaClock
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Record
from stepscale.bench.timing.energy import energy_counter
from stepscale.bench.timing.profiler import busy_seconds
from stepscale.bench.timing.workload import Workload
from tests.conftest import batch_of, generic_flow
from tests.support.compose import built, composed
from tests.support.jobs import job, logged
from tests.support.workloads import OPTIMIZERS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
STEPS = 12  # beyond a period of K-FAC's


def measured(path: Path, *overrides: str, dtype: str = "float32", **axes: Any) -> Record:
    found = measure_cell(
        logged(job(path, *overrides, f"dtype={dtype}", "device=cuda", device="cuda", dtype=dtype, **axes))
    )
    assert found.status == "ok", f"{found.reason}\n{found.traceback}"
    return found


@pytest.mark.parametrize("optimizer", ["relative", "relative_fused", "layerwise", "kfac", "naive"])
def test_a_cell_is_measured(tmp_path: Path, optimizer: str) -> None:
    found = measured(tmp_path, optimizer=optimizer, dim=64)
    row = tables.row(found)
    assert found.timing is not None and found.timing.gpu is not None and found.timing.gpu.busy_s is not None
    assert 0 < found.timing.gpu.busy_s <= 1.1e-3 * row["step_ms"]
    assert row["step_ms"] > 0 and row["limit_ms"] > 0 and row["clock"] == "cuda"
    assert row["peak_mib"] > 0 and found.memory.read_from == "allocator"
    if found.direction.cosine is not None and optimizer in ("layerwise", "naive"):
        assert found.direction.cosine == pytest.approx(1, abs=1e-3)
    assert found.notes == {}
    assert found.timing.traced is not None
    assert sum(found.timing.traced.kind_s) == pytest.approx(found.timing.gpu.busy_s, rel=0.1)


@pytest.mark.parametrize("dtype", ["float64", "tf32", "bfloat16"])
def test_a_cell_of_another_number_type_is_measured(tmp_path: Path, dtype: str) -> None:
    found = measured(tmp_path, optimizer="relative", dim=64, dtype=dtype)
    assert found.environment.tf32 is (dtype == "tf32")
    assert set(found.notes) <= ({"cosine"} if dtype == "bfloat16" else set())


@pytest.mark.parametrize("optimizer", ["relative", "relative_fused"])
def test_a_compiled_cell_is_measured(tmp_path: Path, optimizer: str) -> None:
    overrides = ["timing.compile=reduce-overhead", "timing.max_step_s=200"]
    overrides += ["optimizer.track=false"] if optimizer == "relative_fused" else []
    measured(tmp_path, *overrides, optimizer=optimizer, dim=64)


def test_a_profile_lists_kernels(tmp_path: Path) -> None:
    rows = measured(tmp_path, "timing.profile=true", dim=64).timing.profile
    assert sum(row.device_share or 0.0 for row in rows) > 0


def test_a_step_takes_energy(tmp_path: Path) -> None:
    if energy_counter(CUDA) is None:
        pytest.skip("no counter of energy")
    found = measured(tmp_path, dim=512)
    assert 0 < found.timing.gpu.energy_j / (1e-3 * tables.row(found)["step_ms"]) < 1500  # watts


def test_events_time_what_the_device_does() -> None:
    x, clock = torch.randn(4096, 4096, device=CUDA), CudaClock(CUDA)
    marks = [clock.stamp()]
    for products in (4, 40):
        for _ in range(products):
            x @ x
        marks.append(clock.stamp())
    clock.synchronize()
    few, many = (clock.seconds(*pair) for pair in itertools.pairwise(marks))
    assert few > 1e-4  # 4 products of 137 GFLOP: the enqueue alone takes less
    assert many > 4 * few


def workload_on(device: str, name: str) -> Workload:
    """Build a float64 flow and its step from the same seed on any device."""
    torch.manual_seed(0)
    config = composed(f"optimizer={name}", "dim=5")["optimizer"]
    model, batches = generic_flow(), [batch_of(9).to(device) for _ in range(3)]
    model.to(device)
    return Workload(model, built(config)(model), batches)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_write_what_they_write_on_a_cpu(name: str) -> None:
    ours = workload_on("cpu", name)
    before = torch.get_rng_state()
    ours.run(STEPS)
    if not torch.equal(before, torch.get_rng_state()):
        pytest.skip("it draws numbers, and other ones on another device")
    there = workload_on("cuda", name)
    there.run(STEPS)
    for here, other in zip(ours.model.parameters(), there.model.parameters(), strict=True):
        assert not math.isnan(here.sum().item())
        torch.testing.assert_close(other.cpu(), here, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_steps_repeat_bit_by_bit(name: str) -> None:
    workload = workload_on("cuda", name)
    workload.run(workload.period)
    saved, found = workload.snapshot(), []
    for _ in range(2):
        workload.restore(saved)
        workload.run(workload.whole_periods(2))
        found.append([parameter.detach().clone() for parameter in workload.model.parameters()])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_kernels_are_seen() -> None:
    assert busy_seconds(workload_on("cuda", "relative"), 3, torch.cuda.synchronize) is not None
