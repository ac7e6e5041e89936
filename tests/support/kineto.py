"""What a profiler takes down of a GPU, without one."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

HOST, DEVICE = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]


def taken(
    name: str,
    start_ns: int = 0,
    ns: int = 0,
    *,
    on: object = DEVICE,
    stream: int = 7,
    number: int = 0,
    launched_by: int = 0,
    annotation: bool = False,
) -> Any:
    """Make an entry as kineto's: of the host with its own ``number``, of the device with that of its operation."""
    facts = {
        "name": name,
        "device_type": on,
        "device_resource_id": stream,
        "start_ns": start_ns,
        "duration_ns": ns,
        "correlation_id": number,
        "linked_correlation_id": launched_by,
        "is_user_annotation": annotation,
    }
    return SimpleNamespace(**{key: lambda value=value: value for key, value in facts.items()})


def profiler_that_takes(entries: Callable[[], list[Any]], averages: list[Any] | None = None) -> tuple[Any, list[Any]]:
    """Return a stand-in for torch's profiler that takes these entries, and a list of what it is asked for."""
    asked: list[Any] = []

    class Profile:
        def __init__(self, **options: object) -> None:
            asked.append(options)

        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *error: object) -> None:
            self.kineto_results = SimpleNamespace(events=entries)

        def key_averages(self) -> list[Any]:
            return averages or []

    return Profile, asked
