"""Trainings killed at any moment and taken up again: ``python -m tests.reliability.killed_trainings --to FILE.csv``.

A row each: when it was killed, where it went on, and whether it came to the same bits as one that nothing disturbed.
Some moments are drawn, others are waited for: the end of the training, and the record, before its checkpoint is gone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec
import pandas as pd
import psutil
from torch import Tensor

from stepscale.bench.records import store
from stepscale.bench.records.schema import Record, Status
from stepscale.models import Flow

OPTIMIZERS = ("relative_fused", "relative_momentum", "adam", "kfac")
SETTINGS = [
    f"model._target_={__name__ if __name__ != '__main__' else 'tests.reliability.killed_trainings'}.Known",
    "task=train", "dim=4", "batch=20", "threads=1", "training.time_limit_s=null", "training.max_steps=2000",
    "training.rows=400", "training.evaluation_rows=50", "training.checkpoint_s=0.05", "training.pictures=1",
]  # fmt: skip
MOST_KILLS = 3  # of a training
PARAMETERS = "parameters"  # the file beside the records that says what they came to
LONGEST_S = 300.0  # that anything is waited for
Row = dict[str, object]
WAITED_FOR = ("the trained parameters", "the record")


class Known(Flow):
    """Tells what its parameters are, when it is drawn from for a picture: once, at the end of its training."""

    def sample(self, count: int) -> Tensor:
        if not self.training:
            digest = hashlib.sha256()
            for name, value in sorted(self.state_dict().items()):
                digest.update(name.encode() + value.cpu().numpy().tobytes())
            Path(os.environ["TRAINED"]).write_text(digest.hexdigest())
        return super().sample(count)


def start(folder: Path, optimizer: str) -> subprocess.Popen[bytes]:
    """Start a training, or take it up where it was killed."""
    words = [*SETTINGS, f"optimizer={optimizer}", f"into={folder}"]
    environment = os.environ | {"TRAINED": str(folder / PARAMETERS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "stepscale.bench", "-m", *words], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, none of which can do anything about it."""
    there = [psutil.Process(process.pid)] if process.poll() is None else []
    for one in there + [child for parent in there for child in parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def wait_until(there: Callable[[], bool], process: subprocess.Popen[bytes], longest_s: float) -> None:
    """Wait for something as closely as can be, while the process lives."""
    ends = time.monotonic() + longest_s
    while not there() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.0002)


def record_of(folder: Path) -> Record | None:
    """Return the training's record, if there is one of a training that came to its end."""
    found = [record for record in store.read_all(folder)[0] if record.status is Status.OK]
    return found[0] if found else None


def came_to(folder: Path) -> tuple[str, str]:
    """Return digests of the parameters and of all figures but the times."""
    record = record_of(folder)
    assert record is not None and record.training is not None, f"no training came to its end in {folder}"
    figures = msgspec.to_builtins(record.training)
    del figures["curve"]["seconds"]
    kept = {name: figures[name] for name in ("curve", "steps", "final", "stopped_by")}
    return (folder / PARAMETERS).read_text(), hashlib.sha256(msgspec.json.encode(kept)).hexdigest()


@cache
def undisturbed(folder: Path, optimizer: str) -> tuple[tuple[str, str], float]:
    """Train without a kill, once for all; return what it came to, and the seconds until its record was there."""
    process, begun = start(folder / optimizer, optimizer), time.monotonic()
    wait_until(lambda: any_record(folder / optimizer), process, LONGEST_S)
    took_s = time.monotonic() - begun
    process.wait()
    return came_to(folder / optimizer), took_s


def killed(folder: Path, optimizer: str, draw: random.Random, waited_for: str | None, took_s: float) -> Row:
    """Kill a training some times, and let it come to its end; return what happened."""
    moments = list[str]()
    there = {WAITED_FOR[0]: (folder / PARAMETERS).exists, WAITED_FOR[1]: lambda: any_record(folder)}
    for number in range(draw.randint(1, MOST_KILLS)):
        process, begun = start(folder, optimizer), time.monotonic()
        if number == 0 and waited_for is not None:
            wait_until(there[waited_for], process, LONGEST_S)
        else:
            wait_until(lambda: False, process, draw.uniform(0.0, took_s))
        if process.poll() is not None:
            break
        kill(process)
        left = [name for name in ("records", "checkpoints") if list((folder / name).glob("*"))]
        moments.append(f"{time.monotonic() - begun:.2f} s, {' and '.join(left) or 'nothing'} there")
    start(folder, optimizer).wait()
    record = record_of(folder)
    resumed_at = record.training.resumed_at if record is not None and record.training is not None else None
    return {"optimizer": optimizer, "kills": len(moments), "killed_at": "; ".join(moments), "waited_for": waited_for,
            "resumed_at": resumed_at}  # fmt: skip


def any_record(folder: Path) -> bool:
    return any((folder / "records").glob("*.json"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, rows = random.Random(asked.seed), []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for number in range(asked.count):
            optimizer = OPTIMIZERS[number % len(OPTIMIZERS)]
            waited_for = (*WAITED_FOR, None)[number % 3]
            whole, took_s = undisturbed(folder / "whole", optimizer)
            own = folder / str(number)
            row = killed(own, optimizer, draw, waited_for, took_s)
            parameters, figures = came_to(own)
            row |= {"same_parameters": parameters == whole[0], "same_figures": figures == whole[1]}
            row["checkpoints_left"] = len(list((own / "checkpoints").glob("*")))
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows)
    asked.to.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(asked.to, index=False)
    good = table["same_parameters"] & table["same_figures"] & (table["checkpoints_left"] == 0)
    print(f"{int(good.sum())} of {len(table)} trainings, killed {table['kills'].sum()} times, came to the same bits")
    return int(not good.all())


if __name__ == "__main__":
    sys.exit(main())
