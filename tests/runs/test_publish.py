"""Copying a finished run to where it is committed."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields, replace

from stepscale.bench.errors import BadRecordError, UsageError
from stepscale.bench.records import merging, store
from stepscale.bench.records.schema import Cell, Machine, Record
from stepscale.bench.report import write
from stepscale.bench.runs import publish
from tests.support.machines import RESULTS
from tests.support.synthetic import COSTS, MACHINE, record, run_of


def planned(folder: Path, more: list[str] | None = None) -> Path:
    """Write the plan of a run that was whole, or that wants ``more`` cells than are recorded."""
    identities = [path.stem for path in (folder / "records").iterdir()] + (more or [])
    (folder / "run.json").write_text(json.dumps({"cells": len(identities), "identities": identities}))
    return folder


def test_publishing_copies_a_finished_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    folder = planned(run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64]))
    store.save(replace(record("mine", 64, 0, 1e-3), machine=replace(MACHINE, host="my-desk")), folder)
    target = publish.publish(folder, "first")
    assert "my-desk" not in "".join(path.read_text() for path in (target / "records").iterdir())
    assert len(list((target / "records").glob("*.json"))) == 2
    with pytest.raises(UsageError, match="is there already"):
        publish.publish(folder, "first")
    for name in ("", "a/b", "local", ".."):
        with pytest.raises(UsageError, match="NAME must be"):
            publish.publish(folder, name)


@pytest.mark.parametrize(("work", "place"), [("jürgen", "jürgen/run"), ("other", "shared/run"), ("/", "shared/run")])
def test_nothing_published_names_a_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, place: str
) -> None:
    """As a launcher's part does, which is given its folder whole; published from there, from elsewhere, from /."""
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    run = planned(run_of(tmp_path / place, {"mine": COSTS["quadratic"]}, [64], seeds=1))
    made = replace(record("mine", 64, 0, 1e-3), command=f"stepscale sweep quick into={run} a//b part=0")
    store.save(made, run)
    plan = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(plan | {"parts": [[[f"hydra.searchpath=[file://{run.parent}/mine]"]]]}))
    (tmp_path / work).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / work)
    target = publish.publish(run, "first")
    assert json.loads((target / "run.json").read_text())["parts"] == [[["hydra.searchpath=[file://mine]"]]]
    own = "stepscale sweep quick into=run a//b part=0"
    assert store.read(target / "records" / f"{made.identity}.json").command == own
    assert f"made by: {own}" in (target / "summary.md").read_text()
    assert not [path for path in target.rglob("*") if path.is_file() and bytes(tmp_path) in path.read_bytes()]


def test_an_unfinished_run_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = planned(run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64]), ["another"])
    with pytest.raises(UsageError, match="not finished"):
        publish.publish(folder, "first")


def test_a_part_of_a_run_is_published_where_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = planned(run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64], seeds=1), ["another"])
    target = publish.publish(folder, "first", partial=True)
    assert len(list((target / "records").glob("*.json"))) == 1
    assert "Not finished: 1 of the 2 planned cells are not recorded." in (target / "summary.md").read_text()


def test_remarks_are_published_without_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = planned(run_of(tmp_path / "José" / "run", {"mine": COSTS["quadratic"]}, [64], seeds=1))
    (folder / "remarks.md").write_text(f"Made by hand from {folder.parent}/mine.\n", encoding="utf-8")
    target = publish.publish(folder, "first")
    assert (target / "remarks.md").read_text() == "Made by hand from mine.\n"
    assert "- Made by hand from mine.\n" in (target / "summary.md").read_text()


def test_what_a_launcher_and_a_run_that_goes_on_leave_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = planned(run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64], seeds=1))
    write.write(folder)
    report = {path.name for path in folder.iterdir() if path.suffix in (".csv", ".png", ".svg", ".md", ".html")}
    for name in (
        ".submitit/1_0/1_0_submitted.pkl", ".submitit/1_0/1_0_log.out", ".hydra/config.yaml", "jobs/part-0.log",
        "part-0.log", "slurm-1.out", "x.pkl", "multirun.yaml", "locks/part-0.lock", "checkpoints/x.pt",
        "operations/x.json", "records/x.json.1.partial", "1_0_submission.sh", "notes.md", "private.csv", "me.png",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left there")
    target = publish.publish(folder, "first")
    kept = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert not [name for name in kept if (target / name).read_bytes() == b"left there"]
    assert report < kept and "scaling.png" in report
    assert {name for name in kept if name.startswith("records/")} == {
        f"records/{path.name}" for path in (folder / "records").glob("*.json")
    }


def test_the_page_is_of_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that lies there, of a part of the run; what cannot be published whole leaves nothing."""
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64], seeds=1)
    write.write(folder)
    planned(run_of(folder, {"mine": COSTS["quadratic"]}, [64, 128], seeds=1))
    with monkeypatch.context() as full:
        full.setattr(publish, "write_manifest", lambda *_: store.read(tmp_path / "nowhere"))
        with pytest.raises(BadRecordError):
            publish.publish(folder, "first")
    assert not list((tmp_path / "results").iterdir())
    target = publish.publish(folder, "first")
    assert "128" in (target / "times.csv").read_text() and "128" not in (folder / "times.csv").read_text()


def test_a_manifest_says_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = planned(run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64]))
    for path in (folder / "records").iterdir():
        path.write_text(path.read_text().replace('"code":"made"', '"code":"made","commit":"abc123"'))
    write.write(folder)
    target = publish.publish(folder, "first", licence="CC-BY-4.0")
    found = json.loads((target / "manifest.json").read_text())
    assert (found["licence"], found["commit"], found["code"]) == ("CC-BY-4.0", ["abc123"], ["made"])
    own = ["run.json", *(f"records/{path.name}" for path in (target / "records").iterdir())]
    own += ["records.parquet"] * bool(find_spec("pyarrow"))
    assert sorted(found["files"]) == sorted(own), "a report is made anew from them"
    for name, digest in found["files"].items():
        assert subprocess.check_output(["sha256sum", target / name], text=True).split()[0] == digest


def test_every_record_of_a_cell_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    runs = []
    for k in (1, 2):
        made = replace(record("mine", 64, 0, 1e-3 * k), finished=f"2026-01-0{k}")
        made.machine = replace(made.machine, host=f"host-{k}")
        store.save(made, tmp_path / str(k))
        runs.append(planned(tmp_path / str(k)))
    merging.merge(runs, tmp_path / "both")
    target = publish.publish(tmp_path / "both", "first")
    found, complaints = store.read_all(target)
    assert sorted(one.finished for one in found) == ["2026-01-01", "2026-01-02"] and not complaints
    assert {one.machine.host for one in found} == {""}
    assert store.read(target / "records" / f"{made.identity}.json").finished == "2026-01-02"


def from_row(row: dict[str, Any]) -> Record:
    """Put a record together from its row, by the README's words."""
    axes = {axis: row.pop(axis) for axis in [field.name for field in fields(Cell)]}
    assert row.pop("machine") == Machine(**json.loads(row["hardware"])).name
    blocks = {name: row.pop(name) for name in ("steps", "step_s", "wall_s", "limit_s", "other_cores")}
    parts = {"hardware": "machine", "data_facts": "data"}
    texts = {
        "config",
        "environment",
        "sources",
        "timing",
        "counts",
        "memory",
        "direction",
        "training",
        "tuning",
        "notes",
    }
    plain = {
        parts.get(name, name): json.loads(value) if name in texts | parts.keys() else value
        for name, value in row.items()
        if value is not None
    }
    if "timing" in plain:
        plain["timing"]["blocks"] = blocks
    return msgspec.convert(plain | {"cell": axes}, Record, strict=False)


@pytest.mark.parametrize("run", ["cpu-2-cores", "train-photos", "h100-largest"])
def test_one_file_holds_all_of_a_runs_records(tmp_path: Path, run: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    found = store.read_all(RESULTS / run)[0][::9]
    publish.write_parquet(found, tmp_path / "records.parquet")
    table = parquet.read_table(tmp_path / "records.parquet")
    assert [from_row(row) for row in table.to_pylist()] == found
    assert str(table.schema.field("step_s").type).startswith("list<")
    assert str(table.schema.field("step_s").type.value_type) == "double"


@pytest.mark.parametrize(("cells", "code", "whole"), [(2, "made", True), (3, "made", False), (2, "other", False)])
def test_a_run_whose_parts_were_measured_apart_is_whole_once_all_its_cells_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int, code: str, whole: bool
) -> None:
    """Each of its commands knows its own cells alone; those of other code do not count."""
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    folder = run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64, 128], seeds=1)
    (folder / "run.json").write_text(json.dumps({"cells": cells, "code": code}))
    if whole:
        assert publish.publish(folder, "first").exists()
    else:
        with pytest.raises(UsageError, match=rf"not finished: \d of its {cells} planned cells are not recorded"):
            publish.publish(folder, "first")
