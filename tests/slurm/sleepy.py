"""An optimizer that sleeps: it takes no CPU, so that many cells fit on few cores."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import torch

STEP_S = 0.02


class Sleepy(torch.optim.SGD):
    """Sleeps, then steps as plain SGD; where a file ``deeds/dim-DIM`` lies it does to its process what that says."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        params = list(params)
        super().__init__(params, lr=lr)
        self.deed = Path("deeds") / f"dim-{len(params[0])}"

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if self.deed.exists():
            deed = self.deed.read_text()
            if deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(int(deed))
        time.sleep(STEP_S)
        super().step()
