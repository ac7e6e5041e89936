"""A folder that two machines measure into holds the cells of both."""

from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path

import pytest
from msgspec.structs import replace

from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.machine import code_version, description
from stepscale.bench.records import store
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import Record, Status
from stepscale.bench.runs import run as module
from stepscale.bench.runs.conduct import conduct
from stepscale.bench.runs.plan import plan_multirun
from stepscale.bench.runs.prediction import predict_too_slow
from stepscale.bench.runs.run import Run
from tests.support.jobs import job
from tests.support.machines import OTHER
from tests.support.synthetic import MACHINE, polynomial, record

GRID = ["dim=8,16", "optimizer=relative,layerwise"]


def test_a_second_machine_measures_its_own_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Job] = []

    def fake(asked: list[Job], tell: Callable[[Record], None], again: bool = False) -> list[Record]:
        measured.extend(asked)
        made = [replace(record("relative", 8, 0, 1e-3), identity=of.identity, cell=of.cell) for of in asked]
        for found, of in zip(made, asked, strict=True):
            found.machine = of.machine
            store.save(found, tmp_path)
            tell(found)
        return made

    monkeypatch.setattr(process, "run", fake)
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog(notes={"counts": "not logged"}) for _ in jobs])
    planned = plan_multirun(GRID)
    for machine in (MACHINE, OTHER, MACHINE, OTHER):
        monkeypatch.setattr(description, "machine", lambda device, machine=machine: machine)
        assert conduct(planned, Run(tmp_path, planned.cells, lambda line: None), "typed") == []
    assert [of.machine.name for of in measured] == [MACHINE.name] * 4 + [OTHER.name] * 4, "each once"
    found = store.read_all(tmp_path)[0]
    assert len(found) == 8 and {one.machine.name for one in found} == {MACHINE.name, OTHER.name}


def test_another_machines_times_foretell_nothing(tmp_path: Path) -> None:
    cubic = polynomial(0, 0, 0, 1e-1)
    known = [record("naive", dim, 0, cubic(dim)) for dim in (64, 128)]
    for made in known:
        made.environment = replace(made.environment, code=code_version.code_hash())
    wanted = replaced(job(tmp_path), cell=replace(known[0].cell, dim=1024), config=known[0].config, sources=[])
    assert predict_too_slow(replaced(wanted, machine=MACHINE), known) is not None
    assert predict_too_slow(replaced(wanted, machine=OTHER), known) is None


@pytest.mark.parametrize("status", [Status.KILLED, Status.TOO_SLOW])
def test_a_cell_that_left_no_record_itself_has_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    """As the parent knows it, which has never built the cell."""
    asked = replaced(job(tmp_path, "timeout_s=0.01"), machine=OTHER)
    if status is Status.TOO_SLOW:
        monkeypatch.setattr(module, "predict_too_slow", lambda *_: "so it is said")
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog() for _ in jobs])
    (found,) = Run(tmp_path, 1, lambda line: None).measure([asked])
    assert (found.status, found.machine) == (status, OTHER)
    assert store.read(tmp_path / "records" / f"{asked.identity}.json").machine == OTHER
