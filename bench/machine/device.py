"""Which device a cell runs on: the user's choice, or what this machine has."""

from __future__ import annotations

import os

import torch

from stepscale.bench.errors import UsageError

CHOICES = ("auto", "cpu", "cuda")


def choose_device(asked: str) -> str:
    """Return ``cpu`` or ``cuda``: the one that is asked for, and of ``auto`` CUDA where torch sees such a device.

    A machine may choose for another, as a login node that plans for a GPU; see ``require_present``.

    Raises:
        UsageError: the choice is none of ``CHOICES``.
    """
    if asked not in CHOICES:
        raise UsageError(
            f"device must be one of {', '.join(CHOICES)}, got {asked!r}; choose a GPU by CUDA_VISIBLE_DEVICES"
        )
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def first_gpu() -> str:
    """Name the GPU that a cell runs on, the first of those that may be used: its number, or its UUID."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def require_present(device: str) -> None:
    """See that this machine has the device.

    Raises:
        UsageError: it is ``cuda``, and torch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device=cuda, but torch {torch.__version__} sees no CUDA device here; use device=cpu")
