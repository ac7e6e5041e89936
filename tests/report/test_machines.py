"""Two machines in one folder: both verdicts, separately, and one comparison."""

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest
from msgspec.structs import replace

from stepscale.bench.records import store, tables
from stepscale.bench.records.schema import Machine, Record, Task
from stepscale.bench.report import page, scaling_findings, scaling_section, scaling_tables, write
from stepscale.bench.report.compared import machines
from stepscale.bench.report.scaling_tables import Judged
from tests.support.machines import OTHER, elsewhere, published, saved
from tests.support.synthetic import record
from tests.support.training import train_record


@pytest.fixture(scope="module")
def here() -> list[Record]:
    return published()


def judge(records: list[Record]) -> Judged:
    return scaling_tables.judge(tables.cells_of(records, Task.TIME))


@pytest.fixture(scope="module", params=[0, 5], ids=["same seeds", "other seeds"])
def mixed(request: pytest.FixtureRequest, here: list[Record]) -> tuple[list[Record], list[Record]]:
    return here, list(elsewhere(here, request.param))


def own(table: pd.DataFrame, machine: str) -> pd.DataFrame:
    return table[table["machine"] == machine].reset_index(drop=True)


def test_what_is_said_of_a_machine_hangs_on_no_other(mixed: tuple[list[Record], list[Record]]) -> None:
    """Every table of both is that of each alone: nothing is averaged, nothing is left out, no spread is shared."""
    both = judge([*mixed[0], *mixed[1]])
    for records in mixed:
        alone, machine = judge(records), records[0].machine.name
        for name, table in alone._asdict().items():
            pd.testing.assert_frame_equal(own(getattr(both, name), machine), own(table, machine), check_dtype=False)


def truth(records: list[Record], dim: int) -> float:
    """How many times as fast as layerwise relative is, from the blocks of seed 0 by a plain mean."""
    seconds = {
        one.cell.optimizer: sum(one.timing.blocks.step_s) / len(one.timing.blocks.step_s)
        for one in records
        if one.timing and one.cell.dim == dim and one.cell.seed == min(other.cell.seed for other in records)
        and one.cell.batch == 100
    }  # fmt: skip
    return seconds["layerwise"] / seconds["relative"]


def test_both_verdicts_are_told_and_compared(mixed: tuple[list[Record], list[Record]]) -> None:
    here, there = mixed
    assert truth(here, 64) > 3 and truth(there, 64) < 0.6 and truth(there, 2048) > 1.1, "what the sentences must say"
    judged = judge([*here, *there])
    between = machines.section(judged)
    assert between is not None
    said = "\n".join([*between.findings, *scaling_findings.findings(judged)])
    one, other = here[0].machine.name, OTHER.name
    assert re.search(rf"`relative` is faster than `layerwise` throughout, [\d.]+–10× .*machine {one}\)", said)
    assert re.search(rf"`relative` overtakes `layerwise` between dim 1024 and 2048.*machine {other}", said)
    assert re.search(
        rf"`relative` against `layerwise`, batch 100: faster, [\d.]+–10× \(dims 64–2048\) on {one};"
        rf" overtakes at dim 1024–2048 on {other}\.",
        said,
    )
    assert said.count("varies by") == 2, "a spread a machine"
    assert f"On {other}: Step / limit varies by" in said
    (table, _) = between.headline.values()
    assert list(table) == ["optimizer", "against", one, other]


def test_a_page_of_two_machines_compares_them_first(here: list[Record], tmp_path: Path) -> None:
    folder = saved([*here, *elsewhere(here)], tmp_path)
    said = write.write(folder)
    assert "Left out" not in said and write.FAILED not in said
    one, other = here[0].machine.name, OTHER.name
    html = (folder / "report.html").read_text()
    assert html.index("Between machines") < html.index("Scaling of one step")
    assert (folder / "machines.png").exists() and (folder / "machines.svg").exists()
    titles = re.findall(r"<h2>([^<]*CPU time)</h2>", html)
    assert titles == [f"flow, depth 2, batch 100, photos, float32, cpu, {name}, CPU time" for name in (one, other)]
    assert len(pd.read_csv(folder / "times.csv")["machine"].unique()) == 2


def test_one_machine_is_told_as_ever(here: list[Record]) -> None:
    judged, name = judge(here), here[0].machine.name
    assert machines.section(judged) is None
    section = scaling_section.section(judged, lambda machine: f"only {machine}")
    assert name not in page.text(section)
    assert not [title for title in (*section.headline, *section.tables) if name in title]
    assert not [table for table in (*section.headline.values(), *section.tables.values()) if "machine" in table]


def test_a_pair_is_one_row_whoever_is_faster() -> None:
    """On one machine relative is, on another layerwise; on a third layerwise overtakes it, a fourth has one alone."""
    times = {"A": (2.0, 2.0), "B": (0.5, 0.5), "C": (2.0, 0.5), "D": (1.0, 1.0)}  # layerwise over relative, by dim
    made = []
    for (machine, ratios), name, seed in itertools.product(times.items(), ("layerwise", "relative"), (0, 1)):
        if (machine, name) != ("D", "layerwise"):
            for dim, ratio in zip((64, 128), ratios, strict=True):
                one = record(name, dim, seed, 1e-3 * (ratio if name == "layerwise" else 1.0))
                made.append(replace(one, machine=Machine(cpu=machine, cores=2)))
    section = machines.section(judge(made))
    assert section is not None
    (table,) = section.headline.values()
    assert table.to_dict("records") == [
        {
            "optimizer": "relative",
            "against": "layerwise",
            "A, 2 cores": "faster, 2× (dims 64–128)",
            "B, 2 cores": "slower, 2× (dims 64–128)",
            "C, 2 cores": "is overtaken at dim 64–128",
        }
    ]
    overtaking = [
        replace(one, cell=replace(one.cell, dim=192 - one.cell.dim)) for one in made if one.machine.cpu == "C"
    ]
    others = [replace(one, machine=OTHER) for one in overtaking]
    both = machines.section(judge([*overtaking, *others]))
    assert both and both.findings == [
        f"`relative` overtakes `layerwise` at dim 64–128 on {OTHER.name} and on C, 2 cores."
    ]


def test_a_machine_asked_with_several_threads_is_several_places() -> None:
    made = [
        record(name, dim, seed, (2e-3 if name == "layerwise" else 1e-3) * threads, threads=threads)
        for name in ("layerwise", "relative")
        for dim in (64, 128)
        for seed in (0, 1)
        for threads in (1, 4)
    ]
    assert machines.section(judge(made)) is None, "of one machine alone"
    others = [replace(one, machine=OTHER) for one in made if one.cell.threads == 4]
    section = machines.section(judge([*made, *others]))
    assert section is not None
    (table,) = section.headline.values()
    places = [OTHER.name, "simulated, 2 cores, 1 thread", "simulated, 2 cores, 4 threads"]
    assert list(table)[:2] == ["optimizer", "against"] and sorted(list(table)[2:]) == places
    assert set(table[places].to_numpy().ravel()) == {"faster, 2× (dims 64–128)"}


def test_training_runs_of_two_machines_are_two_workloads(tmp_path: Path) -> None:
    for name, machine in (("a", OTHER), ("b", None)):
        for optimizer in ("layerwise", "relative"):
            made = train_record(optimizer, 1)
            made.machine, made.identity = machine or made.machine, f"{name}{optimizer}"
            store.save(made, tmp_path)
    said = write.write(tmp_path)
    assert write.FAILED not in said and f"machine {OTHER.name}" in said
    assert len(list(tmp_path.glob("training-*.png"))) == 2
    assert said.count("of its time, machine") == 2
