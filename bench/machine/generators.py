"""The generators that a model may draw from: torch's, of the CPU and of a GPU, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from stepscale.optimizers import StateDict


def states(device: torch.device) -> StateDict:
    """Return where the generators are; the device's too, where it has one of its own."""
    numpys = np.random.get_state(legacy=False)
    numpys["state"]["key"] = numpys["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpys, "python": random.getstate()}


def restore(saved: StateDict, device: torch.device) -> None:
    """Put the generators where they were.

    Raises:
        KeyError, TypeError, ValueError: these are no states of generators.
    """
    torch.set_rng_state(saved["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)
    np.random.set_state(saved["numpy"])
    random.setstate(saved["python"])


@contextmanager
def kept(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Put the generators back when the block ends; with a ``seed`` it begins from that."""
    saved = states(device)
    try:
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        yield
    finally:
        restore(saved, device)
