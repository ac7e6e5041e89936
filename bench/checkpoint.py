"""Checkpoints of a training run: from the last one it goes on after whatever ended it."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch

from stepscale.bench.training import Training


class Checkpoint:
    """Saves a training run every so often, and once more when its process is asked to end."""

    def __init__(self, path: Path, training: Training) -> None:
        self.path, self.training = path, training
        self._saved, self._asked = time.perf_counter(), False
        signal.signal(signal.SIGTERM, self._ask)

    def resume(self) -> None:
        """Take up the run where its checkpoint left it, if there is one that can be read."""
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, weights_only=False)  # our own file, of this very code
        except Exception as error:  # whatever a damaged pickle raises
            print(f"{self.path} is damaged ({error}); training starts anew", file=sys.stderr)
            return
        self.training.load_state_dict(state)

    def look(self) -> None:
        """Save if it is time to, or if the process is to end.

        Raises:
            SystemExit: the process was asked to end.
        """
        if self._asked or time.perf_counter() - self._saved >= self.training.settings.checkpoint_s:
            self.save()
        if self._asked:
            sys.exit(f"ended at step {self.training.position}; the checkpoint is {self.path}")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; a disk that is full costs the checkpoint, not the run."""
        partial = self.path.with_suffix(".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.training.state_dict(), partial)
            os.replace(partial, self.path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            print(f"\n{self.path} cannot be written: {error}; training goes on without", file=sys.stderr)
        self._saved = time.perf_counter()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
