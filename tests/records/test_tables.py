"""Records as tables."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from stepscale.bench.records import store, tables, work
from stepscale.bench.records.schema import AXES, UNMARKED, Counts, Record, Status, StepClass, Task
from stepscale.bench.report.write import write
from tests.support.synthetic import TIMED, failed, record, run_of
from tests.support.training import train_record as training_record


def test_table_is_tidy_with_failures_as_rows(tmp_path: Path) -> None:
    store.save(record("relative", 64, 0, 2e-3), tmp_path)
    store.save(failed("naive", 512, 0, "out_of_memory"), tmp_path)
    table = tables.load(tmp_path)
    assert list(table.columns[: len(AXES)]) == list(AXES)
    assert table["status"].tolist() == ["out_of_memory", "ok"]
    assert table["step_ms"].tolist()[1] == pytest.approx(2.0)
    assert table["step_ms"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "damaged"),
        ('{"schema": 1, "status"', "damaged"),
        ("[1]", "schema None"),
        ('{"schema": 0}', "schema 0; this version of stepscale reads schemas 1, 2"),
        ('{"schema": 1, "status": "ok"}', "is no whole record: 'environment'"),
    ],
)
def test_a_damaged_record_is_named_and_the_rest_is_used(tmp_path: Path, content: str, complaint: str) -> None:
    run_of(tmp_path, {"relative": lambda d: 1e-3}, [64, 128])
    (tmp_path / "records" / "broken.json").write_text(content)
    with pytest.warns(UserWarning, match=rf"broken\.json.*{complaint}"):
        table = tables.load(tmp_path)
    assert len(table) == 4


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        tables.load(tmp_path)


def changed(seed: int, step_s: float, finished: str = "", **config: Any) -> Record:
    made = record("mine", 64, seed, step_s)
    made.config, made.finished = TIMED | {"optimizer": config}, finished
    made.identity = f"{seed}-{config}-{finished}"
    return made


def test_what_differs_in_its_configuration_is_no_other_seed(tmp_path: Path) -> None:
    """A file edited between two runs into one folder: averaged, the two would pass for one optimizer."""
    for seed in (0, 1):
        for lr, step_s in ((0.1, 1e-3), (0.2, 3e-3)):
            store.save(changed(seed, step_s, lr=lr, name="same"), tmp_path)
    found = tables.load(tmp_path).groupby("optimizer")["step_ms"].agg(["count", "mean"])
    assert found["count"].to_dict() == {"mine[optimizer.lr=0.1]": 2, "mine[optimizer.lr=0.2]": 2}
    assert found["mean"].to_dict() == pytest.approx({"mine[optimizer.lr=0.1]": 1, "mine[optimizer.lr=0.2]": 3})


def test_of_the_same_cell_by_another_code_the_latest_counts(tmp_path: Path) -> None:
    for finished, step_s in (("2026-01-02", 2e-3), ("2026-01-01", 1e-3), ("2026-01-03", 3e-3)):
        store.save(changed(0, step_s, finished, lr=0.1), tmp_path)
    with pytest.warns(UserWarning, match="Left out: 2 records of cells that other code"):
        table = tables.load(tmp_path)
    assert (table["optimizer"].item(), table["step_ms"].item()) == ("mine", pytest.approx(3))
    assert "Left out: 2 records of cells that other code, data or optimizers have measured again" in write(tmp_path)


def test_a_device_that_was_named_makes_no_other_cell_than_the_same_unnamed(tmp_path: Path) -> None:
    """Nor do threads: of both the axis says what was measured."""
    for finished, asked in (("2026-01-01", {"device": "auto", "threads": None}), ("2026-01-02", {"device": "cpu"})):
        made = changed(0, 1e-3, finished, lr=0.1)
        store.save(replace(made, config=made.config | asked), tmp_path)
    with pytest.warns(UserWarning, match="Left out: 1 record"):
        assert tables.load(tmp_path)["optimizer"].to_list() == ["mine"]


def test_a_training_run_of_an_edited_optimizer_is_no_other_seed(tmp_path: Path) -> None:
    for number, finished in enumerate(("2026-01-02", "2026-01-01")):
        made = training_record("relative", 1)
        made.finished, made.identity = finished, str(number)
        store.save(made, tmp_path)
    with pytest.warns(UserWarning, match="Left out: 1 record of cells"):
        assert tables.load(tmp_path, "train")["identity"].to_list() == ["0"]


def test_training_runs_of_two_budgets_are_no_seeds_of_one_method(tmp_path: Path) -> None:
    """Nor in their curves, of which one run has none; a trial's name is its optimizer's, whatever it tries."""
    for steps, seed, trial in itertools.product((20, 400), (1, 2), (False, True)):
        made = training_record("relative", seed, trial=trial)
        made.config["training"]["max_steps"], made.identity = steps, f"{steps}-{seed}-{trial}"
        made.training = None if (steps, seed, trial) == (20, 1, False) else made.training
        made.status = made.status if made.training else Status.KILLED
        store.save(made, tmp_path)
    runs, curves = tables.load(tmp_path, "train"), tables.curves(tmp_path)
    apart = {f"relative[training.max_steps={steps}]": 2 for steps in (20, 400)}
    assert runs["optimizer"].value_counts().to_dict() == apart | {"relative": 4}
    assert curves.groupby("optimizer")["identity"].nunique().to_dict() == {
        "relative": 4, "relative[training.max_steps=20]": 1, "relative[training.max_steps=400]": 2
    }  # fmt: skip
    assert set(runs[runs["trial"]]["optimizer"]) == {"relative"}


def test_flags_and_figures_have_whole_types_though_cells_fail(tmp_path: Path) -> None:
    for made in (record("one", 64, 0, 1e-3), failed("one", 128, 0, "out_of_memory")):
        store.save(made, tmp_path)
    table = tables.load(tmp_path)
    assert table[~table["contended"]]["dim"].to_list() == [64]
    assert table["energy_j"].dtype == float and table["step_ms"].dtype == float


def test_no_such_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task must be one of time, train, got 'tim'"):
        tables.load(tmp_path, "tim")


def test_phases_add_up_to_the_step_that_the_blocks_saw(tmp_path: Path) -> None:
    """The trace is of other steps, each of which stops the clock."""
    made = record("one", 64, 0, 1e-3)
    made.timing.trace = [
        StepClass([0], 0.5, 3, {"gradient": 2e-3}),
        StepClass([1], 0.5, 3, {"gradient": 2e-3, "inverse": 4e-3}),
    ]
    row = tables.row(made)
    assert row["phases_ms"] == pytest.approx({"gradient": 0.5, "inverse": 0.5})
    assert (row["cheap_ms"], row["peak_ms"]) == pytest.approx((0.5, 1.5))


def test_bits_are_of_a_dimension_of_the_data_and_not_of_what_grows() -> None:
    made = training_record("relative", 0, dim=64)
    made.training.final.held_out_nats = -8 * math.log(2)
    of_dim = tables.row(made)["held_out_bits"]
    made.config["data"]["dim"] = 8
    assert (of_dim, tables.row(made)["held_out_bits"]) == pytest.approx((6 + 8 / 64, 6 + 1))


def test_the_drift_is_the_worst_seen() -> None:
    made = training_record("relative", 0)
    made.training.curve.drift_nats = [None, 1e-3, -4e-3, 2e-3]
    assert tables.row(made)["drift_nats"] == 4e-3


@pytest.mark.parametrize(("unmarked_s", "shown"), [(9e-6, False), (2e-5, True)])
def test_what_follows_the_last_mark_is_shown_from_a_hundredth_on(unmarked_s: float, shown: bool) -> None:
    made = record("one", 64, 0, 1e-3)
    made.timing.trace[0].phases_s = {"gradient": 1e-3 - unmarked_s, UNMARKED: unmarked_s}
    assert (UNMARKED in tables.row(made)["phases_ms"]) == shown


@pytest.mark.parametrize("times", [0, 6], ids=["no limit", "a wrong limit"])
def test_a_cell_without_a_ratio_has_its_other_figures(times: int) -> None:
    made = record("mine", 64, 0, 2e-3)
    made.timing.blocks.limit_s = [1.0] * times
    if not times:
        made.counts.limit_flops = None
    found = tables.cells_of([made], Task.TIME).iloc[0]
    assert found[["limit_ms", "ratio", "ratio_low", "ratio_high"]].isna().all()
    assert found["step_ms"] == pytest.approx(2.0)
    assert math.isnan(found["limit_flops"]) == (not times)


@pytest.mark.parametrize(("flops", "exponent"), [(81.0, 2.0), (64.0, 0.0), (1.0, None)])
def test_growth_is_of_flops_and_none_where_a_larger_dim_has_less_of_them(flops: float, exponent: float | None) -> None:
    counts = Counts(
        flops=flops, operations=1.0, synchronisations=0.0, uncounted=[], limit_flops=None, second_dim=8,
        second_flops=64.0,
    )  # fmt: skip
    assert work._growth(counts, 9) == (None if exponent is None else pytest.approx(exponent))
