"""What users bring, good and bad; named as a ``_target_``."""

import os
import signal
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stepscale.models import Flow


class Misbehaving(torch.optim.SGD):
    """An optimizer whose step does what its ``deed`` says."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, deed: str) -> None:
        super().__init__(params, lr=lr)
        self.deed = deed

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "hang":
            time.sleep(60)
        if self.deed == "exit":
            os._exit(3)
        if self.deed == "hoard":
            torch.ones(2**28)
        raise RuntimeError("the deed was done")


def misbehave(deed: str) -> list[str]:
    return ["optimizer.update._target_=tests.support.theirs.Misbehaving", f"+optimizer.update.deed={deed}"]


class OnlyLoss(torch.nn.Linear):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return self(batch).square().mean()


class Convolution(torch.nn.Conv1d):
    """Much wider than its data, and no ``torch.mm`` in it."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, 64, 3)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return self(batch.unsqueeze(1)).square().mean()


class NoProduct(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch * self.scale).square().mean()


class Broken(torch.nn.Linear):
    def __init__(self, dim: int, depth: int) -> None:
        raise ValueError("hidden must be even; set hidden=64")


class WithScale(Flow):
    """Its capture knows nothing of one of its parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.scale = nn.Parameter(torch.ones(3))
