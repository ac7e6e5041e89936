"""Checkpoints of a training run: from the last one it goes on after whatever ended it."""

from __future__ import annotations

import hashlib
import io
import os
import pkgutil
import signal
import time
from collections.abc import Set
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from stepscale.bench.atomic import atomic_write
from stepscale.bench.errors import StoppedError
from stepscale.bench.notes import Notes, one_line
from stepscale.bench.training.evaluation import update_of
from stepscale.bench.training.loop import Training
from stepscale.optimizers import StateDict, Step, parts_of

DAMAGED = ".damaged"  # is added to the name of one that is set aside


class Checkpoint:
    """Saves a training run every so often, and once more when its process is asked to end.

    The file is a line that holds the SHA-256 of the rest, and torch's own format, of which nothing is run.
    """

    def __init__(self, path: Path, training: Training, notes: Notes) -> None:
        self.path, self.training, self.notes = path, training, notes
        self._saved, self._asked = time.perf_counter(), False
        self._taken_up: int | None = None  # the position, and no step has been made from there yet
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._ask)

    def resume(self) -> None:
        """Take up the run where its checkpoint left it; one that is damaged is set aside, and the run starts anew."""
        if not self.path.exists():
            return
        untouched = deepcopy(self.training.state_dict())
        try:
            self.training.load_state_dict(read(self.path, packages_of(self.training.step)))
        except Exception as error:
            self.training.load_state_dict(untouched)
            self._set_aside(f"is damaged ({one_line(error)}), and training started anew")
        else:
            self._taken_up = self.training.position

    def failed(self) -> None:
        """Note that the run has failed: where it could make no step from its checkpoint, that is set aside."""
        if self._taken_up == self.training.position and self.path.exists():
            self._set_aside("lets no step be made; run again to start anew")

    def look(self) -> None:
        """Save if it is time to, or if the process is to end.

        Raises:
            StoppedError: the process was asked to end.
        """
        if self._asked or time.perf_counter() - self._saved >= self.training.settings.checkpoint_s:
            self.save()
        if self._asked:
            raise StoppedError(f"ended at step {self.training.position}; the checkpoint is {self.path}")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; a disk that is full costs the checkpoint, not the run."""
        with self.notes.optional("checkpoint"):
            write(self.training.state_dict(), self.path)
        self._saved = time.perf_counter()

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(self.path.name + DAMAGED)
        self.notes["checkpoint"] = f"{self.path.name} {why}; it is kept as {aside.name}"
        with self.notes.optional("checkpoint"):
            os.replace(self.path, aside)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def write(state: StateDict, path: Path) -> None:
    """Write a state, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(path) as file:
        file.write(_digest(content.getbuffer()) + b"\n")
        file.write(content.getbuffer())


def packages_of(step: Step) -> set[str]:
    """Name the packages of a step's update, whose state may be of classes of their own."""
    return {type(part).__module__.partition(".")[0] for part in parts_of(update_of(step))} - {"torch"}


def read(path: Path, packages: Set[str] = frozenset()) -> StateDict:
    """Read a state, of numbers, text, tensors, and of instances of classes of these packages.

    Raises:
        ValueError: it is no checkpoint, or not the one that was written.
        OSError: it cannot be read.
        pickle.UnpicklingError: it holds anything else.
    """
    line, _, content = path.read_bytes().partition(b"\n")
    if line != _digest(content):
        raise ValueError("its content has not the SHA-256 that it was written with")
    with torch.serialization.safe_globals(_classes(content, packages)):
        state: StateDict = torch.load(io.BytesIO(content), weights_only=True)
    return state


def _classes(content: bytes, packages: Set[str]) -> list[Any]:
    """Return the classes of these packages that a state holds instances of, as of an update's structured matrices."""
    try:
        from torch.serialization import get_unsafe_globals_in_checkpoint
    except ImportError:  # torch 2.5: there such a run starts anew
        return []
    names = get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    found = [pkgutil.resolve_name(name) for name in names if name.split(".")[0] in packages]
    return [one for one in found if isinstance(one, type)]


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
