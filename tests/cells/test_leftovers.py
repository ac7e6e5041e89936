"""What a cell starts is ended with it, and what it changes costs no record: its own or another's."""

import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest

from stepscale.bench.cells import fork_server, process
from stepscale.bench.records import store
from tests.support.deeds import misbehaving
from tests.support.jobs import THREADS, job
from tests.support.processes import MARK, marked, survivors


@pytest.fixture(scope="module")
def mark() -> Iterator[str]:
    """A mark that all processes of this module's cells have, and their server."""
    mark, environment = marked()
    fork_server.stop()
    resource_tracker.ensure_running()  # unmarked: it is this process's, and stays
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, environment[MARK])
        fork_server.start(THREADS)
    yield mark
    fork_server.stop()


def outlived(mark: str) -> list[str]:
    """Name the processes that have outlived their cell."""
    return survivors(mark, 10, spared={forkserver._forkserver._forkserver_pid})


def test_no_process_that_a_cell_starts_outlives_it(tmp_path: Path, mark: str) -> None:
    deeds = ["child", "child of a session", "daemon", "pool"]
    jobs = [job(tmp_path, *misbehaving(deed)) for deed in deeds]
    found = process.run(jobs)
    assert [made.status for made in found] == ["ok"] * len(deeds)
    died = process.run([job(tmp_path, *misbehaving("child, then killed"))], again=True)
    assert (died[0].status, died[0].signal) == ("killed", 9)
    assert outlived(mark) == []


def test_what_a_cell_changes_costs_no_record(tmp_path: Path, mark: str) -> None:
    deeds = ["thread", "other folder", "no files", "no output", "no print"]
    jobs = [job(tmp_path, *misbehaving(deed)) for deed in deeds]
    found = {made.identity: made for made in process.run(jobs)}
    assert [found[asked.identity].status for asked in jobs] == ["ok"] * len(deeds)
    on_disk, complaints = store.read_all(tmp_path)
    assert {made.identity: made for made in on_disk} == found and not complaints
    assert outlived(mark) == []


def test_a_server_that_a_cell_has_ended_is_replaced(tmp_path: Path) -> None:
    fork_server.start(THREADS)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert [made.status for made in process.run([job(tmp_path)])] == ["ok"]


def test_a_process_that_a_signal_ends_leaves_no_record_before_it_is_tried_again(tmp_path: Path) -> None:
    asked = job(tmp_path, *misbehaving("SIGTERM"))
    assert process.run([asked]) == [] and not store.path_of(tmp_path, asked.identity).exists()
    [found] = process.run([asked], again=True)
    assert (found.status, found.signal, found.reason) == ("killed", 15, "its process was ended by SIGTERM")


def test_a_process_that_ends_with_its_server_leaves_no_record_before_it_is_tried_again(tmp_path: Path) -> None:
    """As where a scheduler ends all of a job, and this process hears of it last."""
    asked = job(tmp_path, *misbehaving("parent killed"))
    assert process.run([asked]) == [] and not store.path_of(tmp_path, asked.identity).exists()
    [found] = process.run([asked], again=True)
    assert (found.status, found.reason) == ("killed", "its process ended with status 255 and left no record")


def test_a_message_of_megabytes_makes_no_record_of_megabytes(tmp_path: Path) -> None:
    asked = job(tmp_path, *misbehaving("message of 10 MB"))
    [found] = process.run([asked])
    assert found.status == "failed" and len(found.reason) == 500
    assert store.path_of(tmp_path, asked.identity).stat().st_size < 100_000
    assert "raise error" in found.traceback and max(map(len, found.traceback.splitlines())) <= 500
