"""A run's folder: what it holds is not measured again, whoever has measured it; what is too slow is foretold."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pandas as pd
import pytest
from msgspec.structs import replace

from stepscale.bench import locks
from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.cli import running
from stepscale.bench.errors import UsageError
from stepscale.bench.machine import code_version
from stepscale.bench.records import store
from stepscale.bench.records.operations import PeriodLog, StepLog
from stepscale.bench.records.schema import GROUP, Record, Status
from stepscale.bench.runs.conduct import conduct
from stepscale.bench.runs.plan import Plan, plan_multirun
from stepscale.bench.runs.prediction import predict_too_slow
from stepscale.bench.runs.run import Run
from tests.support.jobs import job
from tests.support.synthetic import MACHINE, cell, failed, polynomial, record


def recorded(jobs: list[Job]) -> list[Record]:
    """Make the records that jobs would leave."""
    return [replace(record("relative", 8, 0, 1e-3), identity=job.identity, cell=job.cell) for job in jobs]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs in the order in which they were measured, each of which leaves a record at once."""
    jobs: list[Job] = []

    def fake(asked: list[Job], tell: Callable[[Record], None], again: bool = False) -> list[Record]:
        jobs.extend(asked)
        made = recorded(asked)
        for found in made:
            store.save(found, asked[0].folder)
            tell(found)
        return made

    monkeypatch.setattr(process, "run", fake)
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog(notes={"counts": "not logged"}) for _ in jobs])
    return jobs


def test_a_cell_that_is_there_is_not_measured_again(tmp_path: Path, measured: list[Job]) -> None:
    asked = job(tmp_path)
    Run(tmp_path, None, print).measure([asked])
    Run(tmp_path, None, print).measure([asked])
    assert len(measured) == 1
    path = store.path_of(tmp_path, asked.identity)
    path.write_text("{")
    Run(tmp_path, None, print).measure([asked])
    assert len(measured) == 2, "a damaged record is measured anew"
    path.write_bytes(store.encode(replace(store.read(path), status=Status.FAILED, reason="a bug of the user's")))
    Run(tmp_path, None, print).measure([asked])
    assert len(measured) == 3, "one that failed is too: the cause may be mended"


def test_what_had_no_room_beside_the_others_is_measured_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, said = [], list[str]()

    def crowded(asked: list[Job], tell: Callable[[Record], None], again: bool = False) -> list[Record]:
        calls.append([job.cell.optimizer for job in asked])
        fit = asked[:1]
        made = recorded(fit)
        for found in made:
            tell(found)
        return made

    monkeypatch.setattr(process, "run", crowded)
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog(notes={"counts": "not logged"}) for _ in jobs])
    run = Run(tmp_path, 2, said.append)
    found = run.measure([job(tmp_path), job(tmp_path, optimizer="layerwise")])
    assert calls == [["relative", "layerwise"], ["layerwise"]]
    assert [made.status for made in found] == ["ok", "ok"] and len(said) == 2 and run.seen == 2


def test_operations_are_logged_once_for_all_seeds(
    tmp_path: Path, measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Job] = []
    log = StepLog(period=PeriodLog(period=1, lengths=[0], sequence=[], kinds=[], synchronisations=0))
    monkeypatch.setattr(process, "log", lambda jobs: logged.extend(jobs) or [log for _ in jobs])
    planned = plan_multirun(GRID)
    conduct(planned, Run(tmp_path, planned.cells, quiet), "typed")
    assert len(measured) == 8 and all(made.log == log for made in measured)
    assert {(made.cell.optimizer, made.cell.dim) for made in logged} == {
        (name, dim) for name in ("relative", "layerwise") for dim in (8, 16)
    }
    assert len(logged) == 4, "a log is shared by the seeds"
    conduct(plan_multirun(["dim=8", "seed=2"]), Run(tmp_path, None, quiet), "typed")
    assert len(measured) == 9 and len(logged) == 4, "and by what goes on from a folder"


def asked(optimizer: str, dim: int, seed: int, max_step_s: float, **axes: object) -> Job:
    config = {"task": "time", "timing": {"max_step_s": max_step_s}}
    return Job("x", cell(optimizer, dim, seed, **axes), config, MACHINE, "typed", Path("nowhere"))


def test_too_slow_is_predicted_from_smaller_dims() -> None:
    cubic = polynomial(0, 0, 0, 1e-1)
    known = [record("naive", dim, 0, cubic(dim)) for dim in (64, 128)]
    for made in known:
        made.environment = replace(made.environment, code=code_version.code_hash())
    assert predict_too_slow(asked("naive", 256, 1, cubic(256) * 1.01), known) is None
    reason = predict_too_slow(asked("naive", 256, 1, cubic(256) * 0.99), known)
    assert reason is not None and "predicted from dim 128: 1.68 s" in reason
    assert predict_too_slow(asked("other", 256, 1, 1e-9), known) is None
    assert predict_too_slow(asked("naive", 256, 1, 1e-9, batch=10), known) is None
    elsewhere = [replace(made, machine=replace(MACHINE, cpu="another")) for made in known]
    assert predict_too_slow(asked("naive", 256, 1, 1e-9), elsewhere) is None
    older = [replace(made, environment=replace(made.environment, code="older")) for made in known]
    assert predict_too_slow(asked("naive", 256, 1, 1e-9), older) is None
    edited = [replace(made, sources=["own:12345678"]) for made in known]
    assert predict_too_slow(asked("naive", 256, 1, 1e-9), edited) is None
    disturbed = deepcopy(known)
    for made in disturbed:
        made.timing.blocks.other_cores = [1.0] * 6
    assert predict_too_slow(asked("naive", 256, 1, 1e-9), disturbed) is None


def test_what_was_too_slow_for_less_time_says_nothing() -> None:
    slow = failed("naive", 128, 0, "too_slow")
    slow.environment = replace(slow.environment, code=code_version.code_hash())
    slow.config = slow.config | {"timing": {"max_step_s": 1}}
    assert "already at dim 128" in str(predict_too_slow(asked("naive", 256, 0, 1), [slow]))
    assert predict_too_slow(asked("naive", 256, 0, 30), [slow]) is None


def quiet(line: str) -> None:
    """Say nothing."""


GRID = ["dim=8,16", "optimizer=relative,layerwise", "seed=0,1"]


def test_a_plan_is_measured_once_and_each_record_read_once(
    tmp_path: Path, measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr(store, "read", lambda path, read=store.read: reads.append(path) or read(path))
    planned = plan_multirun(GRID)
    run = Run(tmp_path, planned.cells, quiet)
    assert conduct(planned, run, "typed") == []
    run.refresh()
    assert len(measured) == len(run.records) == 8 and reads == []
    assert {made.command for made in measured} == {"typed"}
    again = Run(tmp_path, planned.cells, quiet)
    assert conduct(planned, again, "typed") == []
    again.refresh()
    assert len(measured) == 8 and len(reads) == 8


def test_what_another_process_has_recorded_meanwhile_is_not_measured_again(tmp_path: Path, measured: list[Job]) -> None:
    planned = plan_multirun(GRID)
    one, other = Run(tmp_path, None, quiet), Run(tmp_path, None, quiet)
    conduct(planned, one, "typed")
    conduct(planned, other, "typed")
    assert len(measured) == 8 and other.records.keys() == one.records.keys()


def test_two_at_once_in_one_folder_share_its_cells(tmp_path: Path, measured: list[Job]) -> None:
    planned, said = plan_multirun(GRID), list[str]()
    runs = [Run(tmp_path, None, said.append) for _ in range(2)]
    threads = [threading.Thread(target=conduct, args=(planned, run, "typed")) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == 8 and len({made.identity for made in measured}) == 8
    assert all(len(run.records) == 8 for run in runs)


def test_a_cell_that_cannot_be_described_costs_no_other(tmp_path: Path, measured: list[Job]) -> None:
    planned = plan_multirun(["dim=8,none,16"])
    faults = conduct(planned, Run(tmp_path, planned.cells, quiet), "typed")
    assert faults == ["dim must be a whole number of at least 1, got 'none'"] and len(measured) == 2


def test_a_deleted_record_is_missing_and_measured_again(tmp_path: Path, measured: list[Job]) -> None:
    planned = plan_multirun(GRID)
    conduct(planned, Run(tmp_path, None, quiet), "typed")
    next((tmp_path / "records").iterdir()).unlink()
    run = Run(tmp_path, planned.cells, quiet)
    assert len(run.records) == 7
    conduct(planned, run, "typed")
    assert len(measured) == 9 and len(run.records) == 8


def test_who_comes_second_is_told_whom_it_waits_for(tmp_path: Path) -> None:
    path, said, order = tmp_path / "one.lock", list[str](), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with locks.held(path, "measuring something", said.append):
            inside.set()
            leave.wait(60)
            order.append("first")

    def second(line: str) -> None:
        said.append(line)
        leave.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    with locks.held(path, "measuring another", second):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    (line,) = said
    assert line.startswith("waiting for process ") and line.endswith("which is measuring something")


def test_time_waited_for_the_machine_is_no_part_of_the_time_left(
    tmp_path: Path, measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, said = [0.0], list[str]()

    @contextmanager
    def waits(*_: object) -> Iterator[None]:
        clock[0] += 3600.0
        yield

    monkeypatch.setattr("stepscale.bench.runs.run.measuring", waits)
    monkeypatch.setattr("stepscale.bench.runs.run.time.perf_counter", lambda: clock[0])
    planned = plan_multirun(GRID)
    conduct(planned, Run(tmp_path, planned.cells, said.append), "typed")
    assert len(measured) == 8 and all("   0:00 left" in line for line in said)


def test_cells_that_differ_in_their_optimizer_alone_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []

    def fake(asked: list[Job], tell: Callable[[Record], None], again: bool = False) -> list[Record]:
        groups.append({(job.cell.optimizer, job.cell.dim, job.cell.seed) for job in asked})
        made = recorded(asked)
        for found in made:
            tell(found)
        return made

    monkeypatch.setattr(process, "run", fake)
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog(notes={"counts": "not logged"}) for _ in jobs])
    planned = plan_multirun(GRID)
    conduct(planned, Run(tmp_path, planned.cells, quiet), "typed")
    assert groups == [{(name, dim, seed) for name in ("relative", "layerwise")} for seed in (0, 1) for dim in (8, 16)]


def test_a_lock_whose_holder_was_killed_is_free(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import os, sys; from pathlib import Path; from stepscale.bench.locks import held\n"
        "with held(Path(sys.argv[1]), 'x', print): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "one.lock")])
    said = list[str]()
    with locks.held(tmp_path / "one.lock", "y", said.append):
        assert said == []


def test_all_who_measure_on_one_gpu_share_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch measures on the first of those that are visible."""
    names = []

    @contextmanager
    def held(path: Path, *_: object) -> Iterator[None]:
        names.append(path.name)
        yield

    monkeypatch.setattr(locks, "held", held)
    for visible in (None, "", "0", "0,1", "1,0"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with locks.measuring("cuda", "measuring", quiet):
            pass
    assert len(set(names[:4])) == 1 and names[4] not in names[:4]


def test_an_empty_plan_has_no_cell() -> None:
    assert Plan(name="mine", parts=[], code="c", torch="2").cells == 0


def test_further_seeds_are_measured_of_what_is_undecided_alone(
    tmp_path: Path, measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look finds nothing undecided any more: the last seed is left out."""
    from stepscale.bench.analysis import factors

    planned = plan_multirun(["dim=8,16", "optimizer=relative,layerwise", "seed=0"])
    seeds = [[[*words[:-1], f"seed={seed}"] for words in planned.parts[0]] for seed in (1, 2)]
    planned = replace(planned, further=seeds)
    looks: list[int] = []

    def undecided(cells: pd.DataFrame) -> set[tuple[object, ...]]:
        looks.append(len(cells))
        job = measured[0]
        axes = {"machine": job.machine.name} | {axis: getattr(job.cell, axis) for axis in GROUP if axis != "machine"}
        return (
            {(*(axes[axis] for axis in GROUP), 16, name) for name in ("relative", "layerwise")}
            if len(looks) < 2
            else set()
        )

    monkeypatch.setattr(factors, "undecided", undecided)
    said = list[str]()
    run = Run(tmp_path, planned.cells, said.append)
    assert conduct(planned, run, "typed") == []
    assert looks == [4, 6]
    assert [(made.cell.dim, made.cell.seed) for made in measured[4:]] == [(16, 1)] * 2
    assert {made.looks for made in measured} == {3}
    assert "undecided yet are 2 cells: another seed of them" in said and run.planned == 6


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Job]) -> Callable[..., int]:
    """The command that measures a grid in a folder of one's own, without its report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running.interrupt, "remember", lambda: None)
    monkeypatch.setattr(running, "finish", lambda run, faults: len(faults))
    return lambda *words: running.run_plan(plan_multirun(list(words)), running.read(list(words)), [])


def test_an_interrupted_run_goes_on_whatever_ran_since(
    tmp_path: Path, typed: Callable[..., int], measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = process.run
    monkeypatch.setattr(process, "run", lambda *asked: 1 / 0 if len(measured) == 4 else fake(*asked))
    with pytest.raises(ZeroDivisionError):
        typed(*GRID)
    monkeypatch.setattr(process, "run", fake)
    assert typed("dim=32") == 0 and len(measured) == 5
    assert typed(*GRID) == 0 and len(measured) == 9, "what was interrupted is not begun anew"
    assert len(list((tmp_path / "results/local").glob("multirun-*"))) == 2


@pytest.mark.parametrize("order", ["tf32,float32", "float32,tf32"])
def test_a_cell_that_cannot_be_measured_stops_no_other_wherever_it_stands(
    typed: Callable[..., int], measured: list[Job], order: str
) -> None:
    assert typed("device=cpu", f"dtype={order}") == 1 and [made.cell.dtype for made in measured] == ["float32"]
    with pytest.raises(UsageError, match="dtype=tf32 is a mode of CUDA devices"):
        typed("device=cpu", "dtype=tf32", "dim=8,16")


def test_latest_leads_to_a_run_once_it_holds_a_record(
    tmp_path: Path, typed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed("dim=8") == 0
    latest = tmp_path / "results" / "local" / "latest"
    first = latest.resolve()
    fake = process.run
    monkeypatch.setattr(process, "run", lambda *asked: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        typed("dim=16")
    assert latest.resolve() == first, "a run without a record has nothing to show"
    monkeypatch.setattr(process, "run", fake)
    assert typed("dim=16") == 0 and latest.resolve() != first
    assert typed("dim=8") == 0 and latest.resolve() == first, "one whose records were there is the latest again"


@pytest.mark.parametrize("lost", ["a record", "the folder"])
def test_a_run_that_lost_records_is_not_finished_and_says_so(
    tmp_path: Path, typed: Callable[..., int], measured: list[Job], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    fake = process.run

    def losing(asked: list[Job], tell: Callable[[Record], None]) -> list[Record]:
        if len(measured) == 6:
            folder = asked[0].folder
            shutil.rmtree(folder) if lost == "the folder" else next((folder / "records").iterdir()).unlink()
        return fake(asked, tell)

    told = list[str]()
    monkeypatch.setattr(process, "run", losing)
    monkeypatch.setattr(running, "finish", lambda run, faults: told.extend(faults) or len(faults))
    assert typed(*GRID) == 1
    [fault] = told
    assert fault.startswith("6 of 8 records" if lost == "the folder" else "1 of 8 records")
    assert fault.endswith("are not there any more; the same command measures them again")
    [folder] = (tmp_path / "results/local").glob("multirun-*")
    assert "identities" not in (folder / "run.json").read_text() if (folder / "run.json").exists() else True
    assert typed(*GRID) == 0
    assert "identities" in (folder / "run.json").read_text() and len(list((folder / "records").iterdir())) == 8


def test_a_process_that_a_signal_ended_is_tried_again_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def ended(asked: list[Job], tell: Callable[[Record], None], again: bool = False) -> list[Record]:
        tries.append(again)
        if not again:
            return []
        made = replace(failed("relative", 8, 0, "killed"), identity=asked[0].identity, signal=9)
        store.save(made, tmp_path)
        tell(made)
        return [made]

    monkeypatch.setattr(process, "run", ended)
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog() for _ in jobs])
    for _ in range(2):
        [found] = Run(tmp_path, None, quiet).measure([job(tmp_path)])
        assert found.status == "killed"
    assert tries == [False, True, False, True]
    store.save(replace(found, signal=None), tmp_path)
    Run(tmp_path, None, quiet).measure([job(tmp_path)])
    assert len(tries) == 4, "one that took too long would do so again"


def test_a_part_says_how_many_of_its_cells_are_recorded(
    typed: Callable[..., int], measured: list[Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = process.run

    def losing(asked: list[Job], tell: Callable[[Record], None]) -> list[Record]:
        for path in (asked[0].folder / "records").glob("*.json"):
            path.unlink()
        return fake(asked, tell)

    monkeypatch.setattr(process, "run", losing)
    asked = running.read([*GRID, "part=0"])
    assert running.run_plan(plan_multirun(asked.words), asked, []) == 1
    said, errors = capsys.readouterr()
    assert "2 of 4 records in" in errors and "\n2 cells are recorded; " in said
