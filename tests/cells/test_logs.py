"""Logs of several cells' operations: made side by side, and by itself where there was too little memory for that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepscale.bench.cells import process
from stepscale.bench.machine import cores
from stepscale.bench.records.operations import StepLog
from tests.support.jobs import job

NAMES = ["relative", "layerwise", "kfac"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done in which order, on two cores, where layerwise finds memory only when it is alone."""
    done: list[str] = []

    def started(target: Any, made: Any) -> tuple[Any, Any]:
        done.append(f"start {made.cell.optimizer}")
        return SimpleNamespace(name=made.cell.optimizer), None

    def log_of(ran: Any, connection: object, timeout_s: float, since: float) -> StepLog:
        done.append(f"wait {ran.name}")
        crowded = ran.name == "layerwise" and done.count("wait layerwise") == 1
        return StepLog(notes={"growth": "OutOfMemoryError: CUDA out of memory" if crowded else ran.name})

    monkeypatch.setattr(process, "_start", started)
    monkeypatch.setattr(process, "_log_of", log_of)
    monkeypatch.setattr(process, "_end", lambda ran: done.append(f"end {ran.name}"))
    monkeypatch.setattr(process.fork_server, "start", lambda threads: None)
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    return done


def test_as_many_work_side_by_side_as_there_are_cores_for(tmp_path: Path, told: list[str]) -> None:
    found = process.log([job(tmp_path, optimizer=name, threads=1) for name in NAMES])
    assert [log.notes["growth"] for log in found] == NAMES, "in the order that was asked for"
    assert told == [
        *("start relative", "start layerwise", "wait relative", "wait layerwise", "end relative", "end layerwise"),
        *("start layerwise", "wait layerwise", "end layerwise"),  # again, alone
        *("start kfac", "wait kfac", "end kfac"),
    ]


def test_one_that_uses_all_cores_works_alone(tmp_path: Path, told: list[str]) -> None:
    process.log([job(tmp_path, optimizer=name, threads=2) for name in NAMES])
    assert [line for line in told if line.startswith("start")] == [f"start {name}" for name in NAMES]
    assert told.index("end relative") < told.index("start layerwise")


def test_on_a_gpu_the_cores_that_a_cell_may_use_do_not_count(tmp_path: Path, told: list[str]) -> None:
    process.log([job(tmp_path, optimizer=name, threads=2, device="cuda") for name in NAMES])
    assert told.index("start layerwise") < told.index("end relative")


def test_a_process_that_the_system_killed_for_memory_is_tried_alone(tmp_path: Path, told: list[str]) -> None:
    assert process.wants_memory(process._death(-9))
    assert not process.wants_memory(process._death(-11))
