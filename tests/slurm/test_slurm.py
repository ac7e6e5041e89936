"""Parts as jobs of a real Slurm: what it kills, requeues and cancels costs no cell, and leaves no record."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stepscale.bench.records import store
from stepscale.bench.records.schema import Record
from tests.slurm.cluster import Cluster, there_is_slurm

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not there_is_slurm(), reason="there is no Slurm"),
    pytest.mark.skipif(find_spec("submitit") is None, reason="pip install 'stepscale[cluster]'"),
]
SUBMITIT = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=all", "hydra.launcher.timeout_min=30",
            "hydra.launcher.mem_gb=1", "+hydra.launcher.additional_parameters={exclusive:true}"]  # fmt: skip
SWEEP = """task: time
settings: >-
  timing.time_limit_s=0.1 timing.warmup_s=0.02 timing.block_s=0.02 batch=5 depth=1
  optimizer.update._target_=sleepy.Sleepy +optimizer.period=1
seeds: {parts}
grids: {{cpu: ["dim={dims} optimizer=relative,layerwise"]}}
"""
TUNED = """task: train
settings: data=digits dim=4 depth=1 training.max_steps=20 training.time_limit_s=null training.pictures=0
seeds: 2
tuning: {settings: training.max_steps=5, factors: [{lr: [0.1, 10]}]}
grids: {cpu: ["optimizer=adam,layerwise"]}
"""
PATIENCE_S = 400


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with the sleeping optimizer."""
    shutil.copy(Path(__file__).with_name("sleepy.py"), tmp_path)
    return tmp_path


class Site:
    """A user's commands on a cluster, in a folder."""

    def __init__(self, cluster: Cluster, folder: Path, parts: int, dims: str = "4,5,6") -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "sleepy.yaml").write_text(SWEEP.format(parts=parts, dims=dims))

    def begin(self, *words: str, core: str | None = None) -> subprocess.Popen[str]:
        """Start a sweep."""
        pinned = [] if core is None else ["taskset", "-c", core]
        command = [*pinned, sys.executable, "-m", "stepscale.bench", "sweep", "sleepy.yaml", "into=run", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=self.cluster.environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def run(self, *words: str) -> tuple[int, str]:
        """Run a sweep to its end; return its status and what it said."""
        return self.end(self.begin(*words))

    def end(self, sweep: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for a sweep, and let no job wait for Slurm's hold of what was requeued."""
        deadline = time.monotonic() + PATIENCE_S
        while sweep.poll() is None and time.monotonic() < deadline:
            self.cluster.release()
            time.sleep(1)
        said, errors = sweep.communicate(timeout=10)
        return sweep.returncode, said + errors

    def records(self) -> list[Record]:
        return store.read_all(self.folder / "run")[0]

    def written(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "run" / "records").glob("*.json")}

    def wait(self, until: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < deadline, f"{what} never came"
            self.cluster.release()
            time.sleep(0.2)

    def assert_whole(self, cells: int) -> None:
        """See that every cell is there, once and well."""
        found = self.records()
        assert Counter(made.status for made in found) == {"ok": cells}
        assert len({(made.cell.dim, made.cell.seed, made.cell.optimizer) for made in found}) == cells


def test_what_slurm_does_to_jobs_costs_no_cell(cluster: Cluster, folder: Path) -> None:
    """Two parts are requeued, one is cancelled, a node goes down and a process is killed: what is missing is said."""
    site = Site(cluster, folder, parts=10)
    sweep = site.begin(*SUBMITIT)
    running = list[str]()

    def four_run() -> bool:
        running[:] = cluster.jobs("RUNNING")
        return len(running) == 4 and len(site.written()) >= 2

    site.wait(four_run, "the first cells")
    requeued, cancelled, down, killed = running
    cluster.ask("scontrol", "requeue", requeued)
    cluster.ask("scancel", cancelled)
    node = cluster.ask("squeue", "-h", "-j", down, "-o", "%N").strip()
    cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    kill_part(killed, cluster)
    site.wait(lambda: requeued not in cluster.jobs("RUNNING"), "the requeue")
    cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")
    status, said = site.end(sweep)
    found = site.records()
    lacking = 60 - len(found)
    assert status == 1 and 0 < lacking < 60, said
    assert f"{lacking} of 60 cells are missing" in said and "the same command goes on from there" in said
    assert "Traceback" not in said
    assert {made.status for made in found} == {"ok"}
    site.wait(cluster.idle, "the end of what the launcher left")
    before = site.written()
    status, said = site.run(*SUBMITIT, "hydra.launcher.partition=other", "hydra.launcher.timeout_min=20")
    assert status == 0, said
    assert f"60 cells, {len(before)} of them there already" in said and "report in run/report.html" in said
    assert before.items() <= site.written().items(), "nothing was measured twice"
    site.assert_whole(60)


def kill_part(job: str, cluster: Cluster) -> None:
    """Kill the process of a part's command, as a system does for want of memory."""
    import psutil

    for process in psutil.process_iter():
        try:
            ours = process.environ().get("SLURM_CONF") == cluster.environment["SLURM_CONF"]
            task = f"{process.environ().get('SLURM_ARRAY_JOB_ID')}_{process.environ().get('SLURM_ARRAY_TASK_ID')}"
            if ours and task == job and any(word.startswith("part=") for word in process.cmdline()):
                process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def test_jobs_go_on_where_their_submitting_command_is_killed(cluster: Cluster, folder: Path) -> None:
    site = Site(cluster, folder, parts=6)
    sweep = site.begin(*SUBMITIT)
    site.wait(lambda: len(site.written()) >= 2, "the first cells")
    sweep.kill()
    sweep.communicate()
    status, said = site.run(*SUBMITIT)
    assert status == 0, said
    site.assert_whole(36)
    assert len(list((folder / "run" / "operations").iterdir())) == 6


def test_an_array_hands_out_parts_and_a_requeued_one_goes_on(cluster: Cluster, folder: Path) -> None:
    """Without any launcher: an array of sbatch, and the exit status of each part."""
    site = Site(cluster, folder, parts=4)
    command = f"{sys.executable} -m stepscale.bench sweep sleepy.yaml into=run part=$SLURM_ARRAY_TASK_ID"
    (folder / "array").write_text(f"#!/bin/sh\nexec {command}\n")
    submit = ["sbatch", "--parsable", "--array=0-3", "--requeue", "--exclusive", "--open-mode=append",
              "--output=part-%a.log", "array"]  # fmt: skip
    array = subprocess.run(submit, cwd=folder, env=cluster.environment, capture_output=True, text=True, check=True)
    site.wait(lambda: len(site.written()) >= 2, "the first cells")
    cluster.ask("scontrol", "requeue", cluster.jobs("RUNNING")[0])
    site.wait(cluster.idle, "the end of the array")
    site.assert_whole(24)
    tasks = cluster.ask("scontrol", "--oneliner", "show", "job", array.stdout.strip()).splitlines()
    assert len(tasks) == 4 and all("ExitCode=0:0" in task for task in tasks)
    assert {made.command.rpartition(" ")[2] for made in site.records()} == {f"part={number}" for number in range(4)}


def test_a_cell_that_really_dies_is_a_row_with_its_machine(cluster: Cluster, folder: Path) -> None:
    site = Site(cluster, folder, parts=1, dims="4,5,6")
    (folder / "deeds").mkdir()
    (folder / "deeds" / "dim-4").write_text("kill")
    (folder / "deeds" / "dim-5").write_text("3")
    for _ in range(2):
        status, said = site.run(*SUBMITIT)
        assert status == 0, said
        found = site.records()
        assert Counter((made.cell.dim, made.status) for made in found) == {
            (4, "killed"): 2, (5, "killed"): 2, (6, "ok"): 2,
        }  # fmt: skip
        assert {made.machine.name for made in found} == {found[0].machine.name} and found[0].machine.host


@pytest.mark.parametrize("cpus", [1, 2])
def test_threads_are_those_of_the_jobs_allocation(cluster: Cluster, folder: Path, cpus: int) -> None:
    """The submitting command has one core, and none of its own settings reach the jobs."""
    site = Site(cluster, folder, parts=1, dims="4")
    given = [word for word in SUBMITIT if "exclusive" not in word]
    sweep = site.begin(*given, f"hydra.launcher.cpus_per_task={cpus}", "threads=all", core="0")
    status, said = site.end(sweep)
    assert status == 0, said
    assert {made.cell.threads for made in site.records()} == {min(cpus, len(os.sched_getaffinity(0)))}


def test_a_tuned_sweep_chooses_what_it_chooses_here(cluster: Cluster, folder: Path) -> None:
    """The trials are a round of jobs, and the trainings that they choose another."""
    site = Site(cluster, folder, parts=1)
    (folder / "sleepy.yaml").write_text(TUNED)
    chosen = []
    for words in ([], SUBMITIT):
        status, said = site.run("device=cpu", *words)
        assert status == 0, said
        found = [made for made in site.records() if not made.config["training"]["trial"]]
        chosen.append(sorted((made.identity, made.cell.optimizer, made.cell.seed) for made in found))
        assert len(site.records()) == 12 and len(found) == 4
        shutil.move(folder / "run", folder / f"run-{len(chosen)}")
    assert chosen[0] == chosen[1], "the identity holds the rate"


def test_every_launcher_leaves_the_same_cells(cluster: Cluster, tmp_path: Path) -> None:
    launchers = {
        "here": [],
        "basic": ["hydra/launcher=basic"],
        "slurm": SUBMITIT,
        "local": ["hydra/launcher=submitit_local"],
    }
    if find_spec("joblib") and find_spec("hydra_plugins.hydra_joblib_launcher"):
        launchers["joblib"] = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    found = {}
    for name, words in launchers.items():
        (tmp_path / name).mkdir()
        shutil.copy(Path(__file__).with_name("sleepy.py"), tmp_path / name)
        site = Site(cluster, tmp_path / name, parts=2, dims="4,5")
        status, said = site.run("device=cpu", *words)
        assert status == 0, said
        found[name] = {(made.identity, made.status) for made in site.records()}
    assert all(cells == found["here"] and len(cells) == 8 for cells in found.values()), found
