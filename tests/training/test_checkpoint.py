"""A training run that is cut short, or killed, goes on to the same end."""

import pickle
import signal
import subprocess
import sys
import time
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stepscale.bench.cells import process
from stepscale.bench.machine.clock import WallClock
from stepscale.bench.notes import Notes
from stepscale.bench.training.checkpoint import Checkpoint
from stepscale.bench.training.loop import Training
from stepscale.optimizers import EKFAC, KFAC, QuadraticStep, Relative, RelativeSGD, SelfNormalizing, pair
from tests.support.training import ADAM, job, training_of

pytestmark = pytest.mark.numerical

STEPS: dict[str, Any] = {
    "relative_fused": partial(RelativeSGD, lr=0.05),
    "relative_momentum": partial(pair, direction=Relative, update=partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "adam": ADAM,
    "kfac": partial(pair, direction=KFAC, update=partial(torch.optim.SGD, lr=0.01)),
    "ekfac": partial(pair, direction=EKFAC, update=partial(torch.optim.SGD, lr=0.01)),
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


@pytest.mark.parametrize("damaged", [b"half a", {"curve": 5}, {"step": {}}, {"model": {}}], ids=str)
def test_a_damaged_checkpoint_is_named_and_training_starts_anew(
    tmp_path: Path, damaged: bytes | dict[str, Any]
) -> None:
    if isinstance(damaged, bytes):
        (tmp_path / "run.pt").write_bytes(damaged)
    else:
        torch.save(training_of(ADAM).state_dict() | damaged, tmp_path / "run.pt")
    run, notes = training_of(ADAM), Notes()
    before = deepcopy(run.model.state_dict())
    Checkpoint(tmp_path / "run.pt", run, notes).resume()
    assert run.position == 0
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert list(notes) == ["the checkpoint, so that training started anew"]


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
