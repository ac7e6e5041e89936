"""Copying a finished run to where it is committed."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from stepscale.bench.errors import UsageError
from stepscale.bench.records import store
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
