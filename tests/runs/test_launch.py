"""Parts as jobs of a launcher: rounds, what is missing after each, and the folder as all the state there is."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from stepscale.bench.cells import process
from stepscale.bench.cells.job import Job
from stepscale.bench.cli import running
from stepscale.bench.cli.running import read, run_plan
from stepscale.bench.machine import code_version, description
from stepscale.bench.machine.device import choose_device
from stepscale.bench.records import store
from stepscale.bench.records.operations import StepLog
from stepscale.bench.records.schema import Machine, Record, Status
from stepscale.bench.runs import launch
from stepscale.bench.runs.plan import plan_multirun, plan_sweep
from stepscale.bench.runs.recorded import Left, Recorded, left
from tests.support.jobs import BRIEF
from tests.support.training import train_record

GRID = ["dim=8,16", "optimizer=relative,layerwise", "seed=0,1,2"]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=all"]
TUNED = """task: train
settings: data=digits dim=8 training.max_steps=4
seeds: 2
tuning:
  settings: training.max_steps=2
  factors: [{lr: [0.1, 10]}]
grids: {cpu: ["optimizer=adam,layerwise"]}
"""
NODE = Machine(cpu="a node's", cores=64)
CONTRARY = Machine(cpu="another node's", cores=8)  # where the smaller of two rates is the better


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """Jobs in the order in which they were measured; the better of two rates is the larger."""
    jobs = list[Job]()

    def fake(asked: list[Job], tell: Callable[[Record], None], again: bool = False) -> list[Record]:
        jobs.extend(asked)
        made = [recorded(job) for job in asked]
        for found in made:
            store.save(found, asked[0].folder)
            tell(found)
        return made

    monkeypatch.setattr(process, "run", fake)
    monkeypatch.setattr(process, "log", lambda jobs: [StepLog(notes={"counts": "not logged"}) for _ in jobs])
    monkeypatch.setattr(running.interrupt, "remember", lambda: None)
    monkeypatch.setattr(running, "finish", lambda run, faults: int(running.told(faults)))
    monkeypatch.chdir(tmp_path)
    return jobs


def recorded(job: Job) -> Record:
    """Make the record that a job would leave; of training one whose likelihood grows with the rate."""
    found = job.record(Status.DIVERGED, "of a test", description.bare())
    if job.config["task"] == "train":
        made = train_record("layerwise", job.cell.seed, trial=job.config["training"]["trial"])
        assert made.training is not None and made.training.final is not None
        rate = job.config["optimizer"]["update"]["lr"]
        made.training.final.validation_nats = -rate if job.machine == CONTRARY else rate
        found.training, found.data = made.training, made.data
        found.status, found.reason = Status.OK, None
    return found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The parts that were handed over together, each of which is measured on a node that is no login node."""
    handed = list[list[int]]()

    def launched(command: list[str], numbers: list[int], words: list[str], folder: Path, tell: object) -> None:
        assert all(launch.LAUNCHER.match(word) for word in words)
        handed.append(list(numbers))
        with monkeypatch.context() as there:
            there.setattr(description, "machine", lambda device: NODE)
            for number in numbers:
                run(*command, f"part={number}")

    monkeypatch.setattr(running, "launch", launched)
    return handed


def run(*words: str) -> int:
    """Run a command in this process."""
    if words[0] == "sweep":
        asked = read(list(words[2:]))
        return run_plan(plan_sweep(words[1], asked.words), asked, ["sweep", words[1], *asked.words])
    asked = read([word for word in words if word != "-m"])
    return run_plan(plan_multirun(asked.words), asked, ["-m", *asked.words])


def test_parts_are_measured_by_a_launcher_and_counted_in_the_folder(
    tmp_path: Path, measured: list[Job], nodes: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The login node is another machine than the nodes, and finds what they have measured all the same."""
    assert run("-m", *GRID, *SLURM, "into=run") == 0
    assert nodes == [[0, 1, 2]] and len(measured) == 12
    assert {job.machine for job in measured} == {NODE}
    assert "identities" in (tmp_path / "run" / "run.json").read_text()
    assert run("-m", *GRID, *SLURM, "into=run") == 0
    assert nodes == [[0, 1, 2]], "nothing is left to hand over"
    assert "12 cells, 12 of them there already" in capsys.readouterr().out


def test_what_a_launcher_leaves_is_counted_and_the_same_command_goes_on(
    tmp_path: Path, measured: list[Job], nodes: list[list[int]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One part is lost whole, of another a cell; the time limit of the jobs is no part of the plan."""
    hand = running.launch

    def losing(command: list[str], numbers: list[int], words: list[str], folder: Path, tell: object) -> str:
        hand(command, [0, 1], words, folder, tell)
        next((folder / "records").iterdir()).unlink()
        return "UncompletedJobError: of part 2"

    with monkeypatch.context() as failing:
        failing.setattr(running, "launch", losing)
        assert run("-m", *GRID, *SLURM, "into=run") == 1
    said = capsys.readouterr().err
    assert "the launcher gave up: UncompletedJobError: of part 2" in said
    assert "5 of 12 cells are missing, of part " in said and "the same command goes on from there" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "records").iterdir()}
    assert run("-m", *GRID, *SLURM, "hydra.launcher.timeout_min=90", "into=run") == 0
    assert len(nodes[-1]) == 2 and 2 in nodes[-1] and len(measured) == 8 + 5
    assert (
        before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "records").iterdir()}.items()
    )


def test_a_cell_that_nobody_can_compose_is_told_and_the_run_is_not_whole(
    tmp_path: Path, measured: list[Job], nodes: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", "dim=8,none", *SLURM, "into=run") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "dim must be a whole number of at least 1, got 'none'"
    assert len(measured) == 1 and "identities" not in (tmp_path / "run" / "run.json").read_text()


def test_words_of_the_launcher_are_no_part_of_the_plan() -> None:
    asked = [read([*GRID, *more]) for more in ([], SLURM, ["+hydra.launcher.account=mine", *SLURM])]
    assert len({plan_multirun(one.words).folder for one in asked}) == 1
    assert len({plan_sweep("quick", one.words).folder for one in asked}) == 1
    assert [len(one.launcher) for one in asked] == [0, 2, 3]


def test_the_device_that_is_planned_is_the_one_that_jobs_measure_on() -> None:
    """Else a node with a GPU would plan other grids than the login node that has none."""
    for words in (["dim=8"], ["device=auto", "dim=8"], ["dim=8", *SLURM]):
        assert read(words).words == [f"device={choose_device('auto')}", "dim=8"]
    for word in ("device=cuda", "device=cpu,cuda"):
        assert read(["dim=8", word, *SLURM]).words == ["dim=8", word]


def test_a_login_node_without_a_gpu_hands_over_the_parts_of_one(
    measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = list[list[str]]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(running, "launch", lambda command, *_: handed.append(command))
    assert run("sweep", "quick", "device=cuda", *SLURM, "into=run") == 1
    [command] = handed
    assert command[:3] == ["sweep", "quick", "device=cuda"] and command[-1] == f"into={Path('run').absolute()}"


def test_finals_are_a_second_round_and_train_what_the_trials_chose(
    tmp_path: Path, measured: list[Job], nodes: list[list[int]]
) -> None:
    (tmp_path / "tuned.yaml").write_text(TUNED)
    assert run("sweep", "tuned.yaml", "into=here") == 0
    local = chosen(measured)
    measured.clear()
    assert run("sweep", "tuned.yaml", *SLURM, "into=there") == 0
    assert nodes == [[0, 1], [2, 3]]
    assert chosen(measured) == local and len(local) == 2
    assert all(rates == {max(rates)} for rates in local.values())


def test_a_point_that_no_trial_chose_for_is_told_and_the_run_is_not_whole(
    tmp_path: Path, measured: list[Job], nodes: list[list[int]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By a launcher as without one: of Adam's trials none comes to its end, at first or at full length."""
    (tmp_path / "tuned.yaml").write_text(TUNED)
    usual = recorded
    for place, last in (("short", 2), ("long", 4)):

        def failing(job: Job, last: int = last) -> Record:
            found = usual(job)
            if job.cell.optimizer == "adam" and job.config["training"]["max_steps"] == last:
                found.status, found.reason = Status.DIVERGED, "of a test"
            return found

        monkeypatch.setattr(sys.modules[__name__], "recorded", failing)
        for words, into in (((), f"{place}-here"), (SLURM, f"{place}-there")):
            for _ in range(2):  # nothing that was measured is lost, and the same command says the same
                assert run("sweep", "tuned.yaml", *words, f"into={into}") == 1
                said = capsys.readouterr().err
                assert "no trial of" in said and "optimizer=adam" in said and "nothing chose its settings" in said
            assert "identities" not in json.loads((tmp_path / into / "run.json").read_text())
            finals = [one for one in store.read_all(tmp_path / into)[0] if not one.config["training"]["trial"]]
            assert {one.cell.optimizer for one in finals} == {"layerwise"} and len(finals) == 2


def chosen(jobs: list[Job]) -> dict[str, set[float]]:
    """Return the rates with which each optimizer was trained for good."""
    found: dict[str, set[float]] = {}
    for job in jobs:
        if not job.config["training"]["trial"]:
            found.setdefault(job.cell.optimizer, set()).add(job.config["optimizer"]["update"]["lr"])
    return found


def test_finals_are_there_where_another_machines_trials_would_choose_others(
    tmp_path: Path, measured: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tuned.yaml").write_text(TUNED.replace("[0.1, 10]", "[0.1, 1, 10]"))
    for machine, words in ((NODE, []), (CONTRARY, ["part=0,1"])):
        monkeypatch.setattr(description, "machine", lambda device, machine=machine: machine)
        assert run("sweep", "tuned.yaml", "into=run", *words) == 0
    plan, records = plan_sweep("tuned.yaml", []), store.read_all(tmp_path / "run")[0]
    for later in (NODE, CONTRARY):
        told = [replace(record, finished=str(record.machine == later)) for record in records]
        assert [left(plan, number, Recorded(told)) for number in plan.numbers] == [Left()] * 4


def test_finals_are_refused_while_a_trial_is_not_there(
    tmp_path: Path, measured: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuned.yaml").write_text(TUNED)
    assert run("sweep", "tuned.yaml", "into=run", "part=2") == 1
    assert measured == []
    words = "2 of the 2 trials of task=train data=digits dim=8 training.max_steps=4 optimizer=adam"
    assert f"{words} device=cpu are not recorded in run: measure part=0 before part=2" in capsys.readouterr().err
    assert run("sweep", "tuned.yaml", "into=run", "part=0,2") == 0
    assert [job.config["training"]["trial"] for job in measured] == [True, True, True, True, False, False]


def test_parts_are_listed_with_those_that_come_later(
    tmp_path: Path, measured: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuned.yaml").write_text(TUNED)
    assert run("sweep", "tuned.yaml", "part=list") == 0 and not measured
    third = capsys.readouterr().out.splitlines()[2]
    assert re.match(r"  2: task=train .* trained as its trials chose, after part 0: 4 cells", third)


def test_what_failed_is_not_missing_and_is_measured_again(tmp_path: Path, measured: list[Job]) -> None:
    plan = plan_multirun([*GRID, "device=cpu"])
    assert left(plan, 0, Recorded([])) == Left(missing=4)
    run("-m", *GRID, "device=cpu", "into=run")
    records = store.read_all(tmp_path / "run")[0]
    assert [left(plan, number, Recorded(records)) for number in plan.numbers] == [Left()] * 3
    bad = replace(records[0], status=Status.FAILED, reason="a bug of the user's")
    lost = [*records[2:], bad]
    lacking = [left(plan, number, Recorded(lost)) for number in plan.numbers]
    assert sum(part.missing for part in lacking) == 1 and sum(part.again for part in lacking) == 1


@pytest.mark.parametrize("other", ["code", "torch", "sources", "dim", "threads"])
def test_a_record_of_something_else_is_none_of_a_plans(tmp_path: Path, measured: list[Job], other: str) -> None:
    run("-m", "dim=8", "device=cpu", "into=run")
    [found] = store.read_all(tmp_path / "run")[0]
    assert left(plan_multirun(["dim=8", "device=cpu"]), 0, Recorded([found])) == Left()
    if other in ("code", "torch"):
        found.environment = replace(found.environment, **{other: "another"})
    elif other == "sources":
        found.sources = ["another==1"]
    else:
        words = {"dim": ["dim=9"], "threads": ["dim=8", "threads=2"]}[other]
        assert left(plan_multirun([*words, "device=cpu"]), 0, Recorded([found])) == Left(missing=1)
        return
    assert left(plan_multirun(["dim=8", "device=cpu"]), 0, Recorded([found])) == Left(missing=1)


def test_of_two_machines_records_its_own_counts() -> None:
    """Also where the other's was there later."""
    pair = [NODE, Machine(cpu="another", cores=1)]
    for order in (pair, pair[::-1]):
        records = [replace(train_record("layerwise", 0), machine=machine) for machine in order]
        for record in records:
            record.environment = replace(description.bare(), code=code_version.code_hash())
            record.config = record.config | {"threads": None}
        there = Recorded(records, NODE.name)
        assert [record.machine for record in there._found.values()] == [NODE]


def test_the_record_that_counts_goes_before_those_beside_it() -> None:
    """In whichever order they were read."""
    made = [replace(train_record("layerwise", 0), machine=NODE, finished=day) for day in ("2026-01-02", "2026-01-01")]
    for record in made:
        record.environment = replace(description.bare(), code=code_version.code_hash())
        record.config = record.config | {"threads": None}
    assert [record.finished for record in Recorded(made)._found.values()] == ["2026-01-02"]


INTERRUPTED = """
import os, signal, sys, threading
from stepscale.bench.runs.launch import run_part
sys.executable = "./slow"
threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
try:
    run_part([], {"part": 0})
except KeyboardInterrupt:
    print(os.path.exists("ended"))
"""


def test_an_interrupt_lets_a_part_end_by_itself(tmp_path: Path) -> None:
    """As it does in a second or more; it has heard of the interrupt, too."""
    (tmp_path / "slow").write_text("#!/bin/sh\nsleep 1.5\ntouch ended\n")
    (tmp_path / "slow").chmod(0o755)
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


ENDED = """
import os, signal, time
from pathlib import Path
import psutil, torch
class Mine(torch.optim.SGD):
    def step(self, closure=None):
        for process in psutil.Process().parents() if not Path("mended").exists() else []:
            if "part=1" in process.cmdline():  # the command of the second part
                process.send_signal(signal.SIGTERM)
                time.sleep(60)
        super().step()
"""


def test_a_launcher_of_hydras_runs_each_part_in_a_process_of_its_own(tmp_path: Path) -> None:
    """One of them is ended from outside: it takes nobody with it and leaves no record, and the same command goes on."""
    (tmp_path / "own.py").write_text(ENDED)
    own = ["optimizer.update._target_=own.Mine", "+optimizer.period=1"]
    words = ["-m", "dim=8", "seed=0,1", *own, *BRIEF, "hydra/launcher=basic", "into=run"]
    command, folder = [sys.executable, "-m", "stepscale.bench", *words], tmp_path / "run" / "records"
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 of 2 cells are missing, of part 1: run/jobs says why, and the same command goes on" in first.stderr
    [before] = folder.iterdir()
    assert store.read(before).status == "ok"
    (tmp_path / "mended").touch()
    written = before.stat().st_mtime_ns
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "report in run/report.html" in again.stdout and before.stat().st_mtime_ns == written
    found, _ = store.read_all(tmp_path / "run")
    assert {(made.cell.seed, made.status) for made in found} == {(0, "ok"), (1, "ok")}
    assert {made.command.rpartition(" ")[2] for made in found} == {"part=0", "part=1"}
