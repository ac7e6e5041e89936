"""Reports of several folders; did an upgrade make steps slower?"""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from msgspec.structs import replace
from scipy import stats

from stepscale.bench.analysis import versions
from stepscale.bench.cli import report
from stepscale.bench.errors import UsageError
from stepscale.bench.records import tables
from stepscale.bench.records.schema import Machine, Record, Task
from stepscale.bench.report.compared import versions as compared
from tests.support.machines import saved, timed
from tests.support.synthetic import record

DIMS, SEEDS = (64, 128, 256), range(4)
NOISE = [-0.006, 0.002, 0.007, -0.003]  # of the log, by seed
SLOWER = {("relative", 128): 1.3}


def run_of(torch: str = "1", factors: dict[tuple[str, int], float] | None = None, **changes: object) -> list[Record]:
    made = []
    for name, scale in (("layerwise", 2e-5), ("relative", 1e-5)):
        for dim in DIMS:
            for seed in SEEDS:
                step_s = scale * dim * math.exp(NOISE[(seed + dim // 64) % 4]) * (factors or {}).get((name, dim), 1.0)
                own = record(name, dim, seed, step_s)
                own.environment = replace(own.environment, torch=torch)
                own.identity, own.finished = f"{own.identity}{torch}", f"2026-01-0{torch}"
                made.append(replace(own, **changes))
    return made


def cells(records: list[Record]) -> pd.DataFrame:
    return tables.cells_of(records, Task.TIME)


def test_a_slower_cell_is_found_and_no_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, after = saved(run_of("1"), tmp_path / "old"), saved(run_of("2", SLOWER), tmp_path / "new")
    report.main([str(before), str(after), "--to", str(tmp_path / "page")])
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("- ") and "as long" in line)
    assert "torch 2 after torch 1, simulated, 2 cores: " in line
    found = re.search(r"slower are 1: `relative` at dim 128 ([\d.]+)× \[([\d.]+), ([\d.]+)\]; ", line)
    assert found and float(found[1]) == pytest.approx(1.3, rel=0.01) and float(found[2]) < 1.3 < float(found[3])
    assert "faster are" not in line and "the limit 1×" in line
    assert f"Left out: {len(run_of())} records of cells that other code" in said, "of the old ones"
    table = pd.read_csv(tmp_path / "page" / "versions.csv").set_index(["optimizer", "dim"])
    assert table.loc[("relative", 128), "verdict"] == "slower" and len(table) == 6
    # by hand: geometric means over seeds, of which the noise is the same on both sides
    by_hand = 1e-5 * 128 * 1e3 * math.exp(sum(NOISE) / 4)
    assert table.loc[("relative", 128), "before_ms"] == pytest.approx(by_hand, rel=1e-5)
    assert table.loc[("relative", 128), "times"] == pytest.approx(1.3, rel=1e-5)
    assert (tmp_path / "page" / "report.html").exists() and not (tmp_path / "page" / "records").exists()
    assert not (before / "report.html").exists()


def test_the_interval_holds_what_days_differ_by() -> None:
    """A day's drift alone, of a machine whose processes do not vary at all."""
    one = [record("relative", dim, seed, 1e-3) for dim in DIMS for seed in SEEDS]
    other = [record("relative", dim, seed, 1.1e-3) for dim in DIMS for seed in SEEDS]
    table = versions.compared(cells(one), cells(other))
    # of two days that vary alike: twice the degrees of freedom
    half = stats.t.ppf(0.975, 2 * versions.DAY.dof) * math.sqrt(2) * versions.DAY.sd
    assert table["high"].to_list() == pytest.approx([1.1 * math.exp(half)] * 3)
    assert table["low"].to_list() == pytest.approx([1.1 * math.exp(-half)] * 3)


def test_one_seed_decides_nothing() -> None:
    one = [record("relative", dim, 0, 1e-3) for dim in DIMS]
    other = [timed(made, 2.0) for made in one]
    table = versions.compared(cells(one), cells(other))
    assert set(table["verdict"]) == {"undecided"} and table["high"].eq(math.inf).all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, False),
        ({"machine": Machine(cpu="another", cores=2)}, False),
        ({"machine": Machine(cpu="simulated", cores=2, driver="2")}, True),
    ],
    ids=["the same version", "another machine", "another driver"],
)
def test_only_other_versions_of_one_machine_are_compared(changes: dict[str, object], told: bool) -> None:
    section = compared.section([("a", run_of()), ("b", run_of(**changes))])
    assert (section is not None) == told
    if section:
        (line,) = section.findings
        assert line.startswith("b against a: driver 2 after driver None, simulated, 2 cores: a step takes 1× as long")


def test_a_commit_that_measures_alike_is_no_other_version() -> None:
    """The code's hash decides, and its commit is the name: a README edited is no upgrade, a dirty tree may be one."""
    before, after, edited = run_of(), run_of(), run_of()
    for made, commit, code in ((before, "abc", "made"), (after, "def", "made"), (edited, "abc", "other")):
        for one in made:
            one.environment = replace(one.environment, commit=commit, code=code)
    assert compared.section([("a", before), ("b", after)]) is None
    found = compared.section([("a", after), ("b", edited)])
    assert found and found.findings[0].startswith("b against a: code abc after code def, ")


def test_a_setting_that_only_the_new_code_knows_makes_no_other_cell() -> None:
    old, new = run_of("1"), run_of("2")
    for made in new:
        made.environment.code = "newer"
        made.config = made.config | {"timing": made.config["timing"] | {"knob": None}}
    both = [*old, *new]
    assert len(tables.newest(both)) == len(new)
    assert set(cells(both)["optimizer"]) == {"layerwise", "relative"}
    for made in new:
        made.environment.code = old[0].environment.code
    assert len(tables.newest(both)) == len(both), "of one code the settings are what the user asked for"


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    there = saved(run_of(), tmp_path / "a")
    with pytest.raises(UsageError, match=rf"no records in {tmp_path / 'b'}"):
        report.main([str(there), str(tmp_path / "b")])
    assert not (tmp_path / "b").exists()


def test_several_folders_have_a_place_of_their_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        saved(run_of()[:1], tmp_path / name)
    (tmp_path / "a" / "run.json").write_text('{"cells": 3, "code": "made"}')
    report.main(["a", "b"])
    assert (tmp_path / "results/local/a+b/report.html").exists()
    assert "Not finished: 2 of the 3 planned cells of a are not recorded." in capsys.readouterr().out
