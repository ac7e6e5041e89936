"""A training run that is cut short, or killed, goes on to the same end."""

import pickle
import random
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stepscale.bench.cells import process, train_cell
from stepscale.bench.cells.measure import measure_cell
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.notes import Notes
from stepscale.bench.records import store
from stepscale.bench.runs.run import Run
from stepscale.bench.training import checkpoint
from stepscale.bench.training.checkpoint import Checkpoint
from stepscale.bench.training.loop import Training
from stepscale.optimizers import (
    EKFAC,
    KBFGS,
    KFAC,
    QuadraticStep,
    Relative,
    RelativeSGD,
    SelfNormalizing,
    StateDict,
    pair,
)
from tests.support.training import ADAM, job, training_of

pytestmark = pytest.mark.numerical

STEPS: dict[str, Any] = {
    "relative_fused": partial(RelativeSGD, lr=0.05),
    "relative_momentum": partial(pair, direction=Relative, update=partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "adam": ADAM,
    "kfac": partial(pair, direction=KFAC, update=partial(torch.optim.SGD, lr=0.01)),
    "ekfac": partial(pair, direction=EKFAC, update=partial(torch.optim.SGD, lr=0.01)),
    "kbfgs_limited": partial(pair, direction=partial(KBFGS, pairs=10), update=partial(torch.optim.SGD, lr=0.01)),
    "kfac_whole": partial(QuadraticStep, direction=partial(KFAC, damping=10.0)),
    "self_normalizing": partial(pair, direction=SelfNormalizing, update=partial(torch.optim.SGD, lr=0.01)),
}


@cache
def whole_run(name: str) -> Training:
    """Train without a stop, once for all stops."""
    whole = training_of(STEPS[name])
    whole.run(WallClock(), lambda: None)
    return whole


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("stop", [0, 7, 33])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path: Path, name: str, stop: int) -> None:
    whole, path, cut = whole_run(name), tmp_path / "run.pt", training_of(STEPS[name])

    def look() -> None:
        if cut.position >= stop:
            Checkpoint(path, cut, Notes()).save()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.run(WallClock(), look)
    again = training_of(STEPS[name])
    Checkpoint(path, again, Notes()).resume()
    assert again.position == cut.position < 60
    torch.manual_seed(99)  # what comes before the checkpoint's own generator must not matter
    Checkpoint(path, again, Notes()).resume()
    again.run(WallClock(), lambda: None)
    for one, same in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, same)
    assert again.final() == whole.final()
    for curve in ("step", "validation_nats", "held_out_nats", "drift_nats"):
        assert getattr(again.curve, curve) == getattr(whole.curve, curve)


def test_batches_that_grow_go_on_as_they_would_have(tmp_path: Path) -> None:
    ends, path = [], tmp_path / "run.pt"
    for stops in (False, True):
        run = training_of(ADAM, max_steps=20)
        run.stream.full_at = 15
        if stops:
            run.settings = replace(run.settings, max_steps=9)
            run.run(WallClock(), lambda: None)
            Checkpoint(path, run, Notes()).save()
            run = training_of(ADAM, max_steps=20)
            run.stream.full_at = 15
            Checkpoint(path, run, Notes()).resume()
            assert run.position == 9
        run.run(WallClock(), lambda: None)
        ends.append([*run.model.parameters()])
    assert run.stream.size(20) == run.stream.count
    assert all(map(torch.equal, *ends))


def assert_started_anew(path: Path, run: Training) -> str:
    """See that a run that has not begun takes nothing up of a checkpoint, which is kept and named; return why."""
    notes, content, before = Notes(), path.read_bytes(), deepcopy(run.model.state_dict())
    Checkpoint(path, run, notes).resume()
    assert run.position == 0 and not run.curve.step
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert list(notes) == ["checkpoint"] and "run.pt is damaged" in notes["checkpoint"]
    assert not path.exists() and path.with_name("run.pt.damaged").read_bytes() == content
    return notes["checkpoint"]


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> tuple[StateDict, bytes]:
    """A run of 20 steps: its state and its checkpoint."""
    run, path = training_of(ADAM, max_steps=20), tmp_path_factory.mktemp("half") / "run.pt"
    run.run(WallClock(), lambda: None)
    Checkpoint(path, run, Notes()).save()
    return run.state_dict(), path.read_bytes()


@pytest.fixture
def run() -> Training:
    return training_of(ADAM)


def test_no_flipped_bit_and_no_missing_end_is_taken_up(
    tmp_path: Path, half_way: tuple[StateDict, bytes], run: Training
) -> None:
    whole, path, draw = half_way[1], tmp_path / "run.pt", random.Random(0)
    for _ in range(300):
        place, flipped = draw.randrange(len(whole)), bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert_started_anew(path, run)
    for length in (0, 1, 64, 65, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_started_anew(path, run)
    path.write_bytes(whole)
    Checkpoint(path, run, Notes()).resume()
    assert run.position == 20, "undamaged it is"


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {}},
        {"model": {"layers.0.weight": torch.zeros(2, 2)}},
        {"step": {}},
        {"curve": 5},
        {"curve": {"step": [0, 1], "seconds": [0.0]}},
        {"progress": {"position": -1, "seconds": 0.0}},
        {"progress": {"position": 10_000, "seconds": 0.0}},
        {"generators": {}},
    ],
    ids=str,
)
def test_what_is_whole_but_of_no_such_run_starts_it_anew(
    tmp_path: Path, changed: StateDict, half_way: tuple[StateDict, bytes], run: Training
) -> None:
    checkpoint.write(half_way[0] | changed, tmp_path / "run.pt")
    assert_started_anew(tmp_path / "run.pt", run)


@pytest.mark.parametrize("content", [[], {}, 5, torch.zeros(3)], ids=str)
def test_what_holds_no_state_starts_it_anew(tmp_path: Path, content: Any, run: Training) -> None:
    checkpoint.write(content, tmp_path / "run.pt")
    assert_started_anew(tmp_path / "run.pt", run)


def test_weights_that_are_no_numbers_start_it_anew(
    tmp_path: Path, half_way: tuple[StateDict, bytes], run: Training
) -> None:
    state = deepcopy(half_way[0])
    state["model"]["layers.1.weight"][2, 3] = torch.nan
    checkpoint.write(state, tmp_path / "run.pt")
    said = assert_started_anew(tmp_path / "run.pt", run)
    assert "a parameter is no finite number" in said


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("hashed", [True, False])
def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, hashed: bool, run: Training) -> None:
    marker, path = tmp_path / "marker", tmp_path / "run.pt"
    content = {"model": Malicious(marker)}
    if hashed:
        checkpoint.write(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert_started_anew(path, run)
    assert not marker.exists()
    pickle.loads(pickle.dumps(content))
    assert marker.exists(), "it would have"


def test_a_state_with_which_no_step_can_be_made_fails_once(tmp_path: Path) -> None:
    """An optimizer's own state is not looked into; a later try must not meet it again."""
    cell = job(tmp_path, "training.checkpoint_s=1e-9", optimizer="sgd_momentum", dim=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cell.Training, "final", stopped)
        assert measure_cell(cell).status == "failed"
    state = checkpoint.read(cell.checkpoint)
    for momentum in state["step"]["update"]["state"].values():
        momentum["momentum_buffer"] = torch.zeros(3)
    state["curve"] = {name: points[:-1] for name, points in state["curve"].items()}
    state["progress"]["position"] = state["curve"]["step"][-1]
    checkpoint.write(state, cell.checkpoint)
    found = measure_cell(cell)
    assert found.status == "failed" and "lets no step be made" in found.notes["checkpoint"]
    again = measure_cell(cell)
    assert again.status == "ok" and again.training.resumed_at == 0


def stopped(*arguments: Any) -> Any:
    raise RuntimeError("stopped here")


class Killed(BaseException):
    """Stands for the end of the process, at once."""


@pytest.mark.parametrize("moment", ["before the record is there", "once it is"])
def test_killed_between_record_and_checkpoint_nothing_is_lost(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = job(tmp_path, "training.checkpoint_s=1e-9", optimizer="adam", dim=8)
    whole = measure_cell(replace(cell, folder=tmp_path / "whole"))

    class Parent:
        def send(self, answer: object) -> None:
            raise Killed

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "before the record is there":
            patch.setattr(store, "write", killed)
        process._measure(cell, Parent())  # type: ignore[arg-type]
    assert cell.checkpoint.exists()
    there = store.path_of(tmp_path, cell.identity)
    assert there.exists() == (moment == "once it is")
    [found] = Run(tmp_path, None, print).measure([cell])
    assert found.status == "ok" and found.training.final.held_out_nats == pytest.approx(
        whole.training.final.held_out_nats, rel=1e-6
    )
    assert bool(found.training.resumed_at) == (moment != "once it is"), "a record that is there stands"
    assert not cell.checkpoint.exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    notes = Notes()
    blocked = tmp_path / "file"
    blocked.write_text("")
    Checkpoint(blocked / "run.pt", training_of(ADAM), notes).save()
    assert "file" in notes["checkpoint"]


def test_asked_to_end_it_leaves_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    endless = job(tmp_path, "training.max_steps=2000", "training.checkpoint_s=0.1", optimizer="adam", dim=64)
    code = (
        "import pickle, signal, sys; from stepscale.bench.cells import process; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # which a background job ignores
        "process.run([pickle.load(sys.stdin.buffer)])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdin
    parent.stdin.write(pickle.dumps(endless))
    parent.stdin.close()
    deadline = time.monotonic() + 180  # loading torch, on a machine that does other things too
    while not endless.checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert endless.checkpoint.exists(), "no checkpoint in time"
    parent.send_signal(signal.SIGINT)
    parent.wait(180)
    assert endless.checkpoint.exists() and not (tmp_path / "records").exists()
    [found] = process.run([endless])
    assert found.status == "ok" and found.training.steps == 2000
    assert 0 < found.training.resumed_at < 2000
    assert not endless.checkpoint.exists()
