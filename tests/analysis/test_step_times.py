"""The analysis against synthetic optimizers of known cost, and its intervals against simulation."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stepscale.bench.analysis import step_times
from stepscale.bench.analysis.cubic_work import growth
from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import GROUP, OnGpu
from tests.support.synthetic import COSTS, DIMS, failed, falling, polynomial, record, run_of

pytestmark = pytest.mark.numerical


def test_local_slopes_tend_to_the_order(cells: pd.DataFrame) -> None:
    slopes = step_times.local_slopes(cells).groupby("optimizer").last()
    for name, cost in COSTS.items():
        true = math.log(cost(1024) / cost(768)) / math.log(1024 / 768)
        assert slopes.loc[name, "low"] <= true <= slopes.loc[name, "high"]
        assert slopes.loc[name, "high"] - slopes.loc[name, "low"] < 0.15


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    cells = tables.load(run_of(tmp_path, {"quadratic": COSTS["quadratic"]}, DIMS, seeds=1))
    assert not math.isfinite(step_times.times(cells)["step_ms_high"].iloc[0])


def test_failed_and_launch_bound_cells_enter_no_fit(cells: pd.DataFrame, tmp_path: Path) -> None:
    run_of(tmp_path, {"cubic": COSTS["cubic"]}, DIMS)
    store.save(failed("cubic", 2048, 0, "out_of_memory"), tmp_path)
    late = record("cubic", 4096, 0, 1.0)
    late.timing.gpu = OnGpu(busy_s=0.1)
    store.save(late, tmp_path)
    table = tables.load(tmp_path)
    assert growth(table)["dim_max"].item() == 1024
    times = step_times.times(table).set_index("dim")
    assert times.loc[2048, "status"] == "out_of_memory"
    assert times.loc[2048, "reason"] == "simulated out_of_memory"
    assert math.isnan(times.loc[2048, "step_ms"])
    assert times.loc[4096, "launch_bound"]


def test_a_contended_cell_spoils_nothing(tmp_path: Path) -> None:
    """One process slowed tenfold by a neighbour, and flagged: times and their intervals stay as they were."""
    run_of(tmp_path, {"quadratic": COSTS["quadratic"]}, DIMS)
    before = step_times.times(tables.load(tmp_path)).set_index("dim")
    slowed = record("quadratic", 256, 9, 10 * COSTS["quadratic"](256))
    slowed.timing.blocks.other_cores = [1.0] * 6
    store.save(slowed, tmp_path)
    times = step_times.times(tables.load(tmp_path)).set_index("dim")
    assert times["ratio_high"].to_list() == before["ratio_high"].to_list()
    assert times.loc[256, "contended"] == 1
    assert times.loc[256, "step_ms"] == pytest.approx(1e3 * COSTS["quadratic"](256), rel=0.03)


def test_groups_are_never_mixed(tmp_path: Path) -> None:
    run_of(tmp_path, {"one": polynomial(0, 0, 1e-3)}, DIMS)
    run_of(tmp_path, {"one": polynomial(0, 0, 5e-3)}, DIMS, batch=10)
    times = step_times.times(tables.load(tmp_path))
    assert len(times) == 2 * len(DIMS)
    assert times.groupby("batch")["step_ms"].max().to_dict() == pytest.approx(
        {100: 1e-3 * 1024**2 / 1e3, 10: 5e-3 * 1024**2 / 1e3}, rel=0.02
    )


def test_budgets_give_measured_dims(cells: pd.DataFrame) -> None:
    inside = step_times.within_budget(step_times.times(cells), "step_ms", 5.0).droplevel(list(GROUP))
    assert inside["quadratic"] == max(d for d in DIMS if COSTS["quadratic"](d) < 5e-3)


def test_a_lucky_seed_is_within_no_budget(tmp_path: Path) -> None:
    for seed, step_s in enumerate((9e-3, 11e-3, 11e-3)):
        store.save(record("one", 64, seed, step_s), tmp_path)
    assert not len(step_times.within_budget(step_times.times(tables.load(tmp_path)), "step_ms", 10.0))


def test_intervals_cover_at_every_dim_though_small_ones_are_noisier(tmp_path: Path) -> None:
    dims, costs = [32, 64, 128, 1024], {f"o{k}": polynomial(0, 0, 1e-2) for k in range(50)}
    times = step_times.times(tables.load(run_of(tmp_path, costs, dims, seeds=3, noise=falling)))
    truth = 1e3 * times["dim"].map(polynomial(0, 0, 1e-2))
    inside = (times["step_ms_low"] <= truth) & (truth <= times["step_ms_high"])
    assert (inside.groupby(times["dim"]).mean() >= 0.86).all(), "at dim 32 one spread for all covers three quarters"
    assert inside.mean() >= 0.93


def test_an_interval_counts_the_processes_that_have_the_figure(cells: pd.DataFrame) -> None:
    """Of five processes one was compared with the limit: its ratio's interval is as wide as that of one."""
    lacking = cells.assign(ratio=cells["ratio"].where((cells["optimizer"] != "cubic") | (cells["seed"] == 0)))
    found = step_times.times(lacking).query("dim == 1024").set_index("optimizer")
    widths = (found["ratio_high"] / found["ratio_low"]).map(math.log)
    assert widths["cubic"] / widths["quadratic"] == pytest.approx(math.sqrt(5))
    nothing = step_times.times(cells.assign(ratio=math.nan))
    assert nothing["ratio"].isna().all() and nothing["ratio_low"].isna().all() and nothing["step_ms"].notna().all()


def test_what_was_only_measured_disturbed_is_flagged(tmp_path: Path) -> None:
    disturbed = record("one", 64, 0, 1e-3)
    disturbed.timing.blocks.other_cores = [1.0] * 6
    for made in (disturbed, record("one", 128, 0, 1e-3)):
        store.save(made, tmp_path)
    assert step_times.times(tables.load(tmp_path)).set_index("dim")["disturbed"].to_dict() == {64: True, 128: False}


def test_cells_that_wait_for_their_host_do_not_widen_the_others_intervals(tmp_path: Path) -> None:
    """Two seeds that differ by 0.2 % on the device, and by 30 % where the host decides."""
    for seed, (steady, waiting) in enumerate([(1.0, 1.0), (1.002, 1.3)]):
        for dim in (64, 128, 256):
            made = record("layerwise", dim, seed, 1e-3 * steady, device="cuda")
            made.timing.gpu = OnGpu(busy_s=0.99e-3)
            store.save(made, tmp_path)
            late = record("relative", dim, seed, 1e-3 * waiting, device="cuda")
            late.timing.gpu = OnGpu(busy_s=1e-4)
            store.save(late, tmp_path)
    times = step_times.times(tables.load(tmp_path)).set_index("optimizer")
    width = np.log(times["step_ms_high"] / times["step_ms_low"])
    assert (width["layerwise"] < 0.01).all()
    assert (width["relative"] > 0.3).all()
