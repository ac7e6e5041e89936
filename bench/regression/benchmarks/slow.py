"""A step with a slow-down of known size, for the gate to find: ``--slow direction=0.05``."""

from __future__ import annotations

import time
from collections.abc import Callable

from stepscale.models import Batch
from stepscale.optimizers import Mark, StateDict, Step, no_mark

PLACES = ("direction", "update")


class Slowed:
    """Runs a step and waits, busy, for a share of that step's own time.

    Args:
        step: what is slowed.
        place: ``direction`` waits before the step, for a share of the last one's time; ``update`` behind it.
        share: of the step's own time, as 0.05 for 5 per cent.
    """

    def __init__(self, step: Step, place: str, share: float) -> None:
        self.step, self.place, self.share, self.facts = step, place, share, step.facts
        self.own_s = 0.0

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        if self.place == "direction":
            wait(self.share * self.own_s)
        began = time.perf_counter()
        self.step(batch, mark)
        self.own_s = time.perf_counter() - began
        if self.place == "update":
            wait(self.share * self.own_s)

    def state_dict(self) -> StateDict:
        return self.step.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.step.load_state_dict(state)


def wait(seconds: float) -> None:
    """Keep the core busy for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def slow_down(asked: str) -> Callable[[Step], Step]:
    """Return what slows a step as ``--slow`` asks, ``PLACE=SHARE``; with nothing asked, what leaves it as it is.

    Raises:
        ValueError: the place is none of ``PLACES``, or the share no number above 0.
    """
    if not asked:
        return lambda step: step
    place, _, share = asked.partition("=")
    if place not in PLACES or not float(share or 0) > 0:
        raise ValueError(
            f"--slow takes {' or '.join(PLACES)}, and a share of the step's time, as {PLACES[0]}=0.05; got {asked!r}"
        )
    return lambda step: Slowed(step, place, float(share))
