"""Checkpoints of a training run: from the last one it goes on after whatever ended it."""

from __future__ import annotations

import signal
import time
from copy import deepcopy
from pathlib import Path
from types import FrameType

import torch

from stepscale.bench.atomic import atomic_write
from stepscale.bench.errors import StoppedError
from stepscale.bench.notes import Notes
from stepscale.bench.training.loop import Training


class Checkpoint:
    """Saves a training run every so often, and once more when its process is asked to end."""

    def __init__(self, path: Path, training: Training, notes: Notes) -> None:
        self.path, self.training, self.notes = path, training, notes
        self._saved, self._asked = time.perf_counter(), False
        signal.signal(signal.SIGTERM, self._ask)

    def resume(self) -> None:
        """Take up the run where its checkpoint left it, if there is one that can be read."""
        if not self.path.exists():
            return
        untouched = deepcopy(self.training.state_dict())
        with self.notes.optional("the checkpoint, so that training started anew"):
            try:
                self.training.load_state_dict(torch.load(self.path, weights_only=True))
            except Exception:
                self.training.load_state_dict(untouched)
                raise

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
        with self.notes.optional("checkpoint"), atomic_write(self.path) as file:
            torch.save(self.training.state_dict(), file)
        self._saved = time.perf_counter()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
