"""Copying a finished run to where it is committed."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
from stepscale.bench.report import write
from stepscale.bench.runs import publish
from tests.support.synthetic import COSTS, record, run_of


def planned(folder: Path, more: list[str] | None = None) -> Path:
    """Write the plan of a run that was whole, or that wants ``more`` cells than are recorded."""
    identities = [path.stem for path in (folder / "records").iterdir()] + (more or [])
    (folder / "run.json").write_text(json.dumps({"cells": len(identities), "identities": identities}))
    return folder


def test_publishing_copies_a_finished_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    folder = planned(run_of(tmp_path / "run", {"mine": COSTS["quadratic"]}, [64]))
    named = replace(record("mine", 64, 0, 1e-3), command=f"stepscale hydra.sweep.dir={tmp_path}/run")
    named.machine = replace(named.machine, host="my-desk")
    store.save(named, folder)
    plan = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(plan | {"multiruns": [[f"file://{tmp_path}/mine"]]}))
    target = publish.publish(folder, "first")
    assert json.loads((target / "run.json").read_text())["multiruns"] == [["file://mine"]]
    assert store.read(target / "records" / f"{named.identity}.json").command == "stepscale hydra.sweep.dir=run"
    assert "my-desk" not in "".join(path.read_text() for path in (target / "records").iterdir())
    assert len(list((target / "records").glob("*.json"))) == 2
    with pytest.raises(UsageError, match="is there already"):
        publish.publish(folder, "first")
    for name in ("", "a/b", "local", ".."):
        with pytest.raises(UsageError, match="NAME must be"):
            publish.publish(folder, name)


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
    write.write(target)
    assert "Not finished: 1 of the 2 planned cells are not recorded." in (target / "summary.md").read_text()


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
