"""A comparison's builds are gone with it, however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stepscale.bench.regression import scratch

HOLDING = """
import time
from stepscale.bench import interrupt
from stepscale.bench.regression.scratch import scratch
interrupt.raise_at_termination()
with scratch() as folder:
    (folder / "build").write_text("large")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def ended(by: int) -> tuple[Path, int]:
    """Have a process hold a folder, and end it."""
    with subprocess.Popen([sys.executable, "-c", HOLDING], text=True, stdout=subprocess.PIPE) as holding:
        assert holding.stdout is not None
        folder = Path(holding.stdout.readline().strip())
        assert (folder / "build").exists()
        holding.send_signal(by)
        return folder, holding.wait(60)


def test_one_that_is_asked_to_end_leaves_nothing(temporary: Path) -> None:
    folder, status = ended(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and not folder.exists()


def test_what_a_killed_one_left_is_removed_by_the_next_and_nothing_else_is(temporary: Path) -> None:
    folder, _ = ended(signal.SIGKILL)
    assert folder.exists()
    begun, old, other = (temporary / name for name in (f"{scratch.PREFIX}begun", f"{scratch.PREFIX}old", "stepscale-x"))
    for made in (begun, old, other):
        made.mkdir()
    long_ago = time.time() - 2 * scratch.YOUNG_S
    os.utime(old, (long_ago, long_ago))
    with scratch.scratch() as first, scratch.scratch() as second:
        assert not folder.exists() and not old.exists()
        assert first.exists() and second.exists(), "one that is in use stays"
    assert sorted(temporary.iterdir()) == sorted([begun, other])
