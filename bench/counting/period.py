"""After how many steps the work of a step repeats, found by watching it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

WATCHED = 320  # steps, of which the first quarter may be settling: a period of up to 120 is met twice


class Period(NamedTuple):
    """When the work of successive steps repeats."""

    steps: int  # after which it does
    settled: int  # steps before it does


def repeats(works: Sequence[Hashable], least: int = 1) -> Period | None:
    """Return the shortest multiple of ``least`` after which the work of successive steps repeats; None without one.

    The first quarter may be settling, as an update's that warms up. The rest must hold the period twice.
    """
    settling = len(works) // 4
    for period in range(least, (len(works) - settling) // 2 + 1, least):
        alike = [one == other for one, other in zip(works, works[period:], strict=False)]
        if all(alike[settling:]):
            return Period(period, next((k + 1 for k in range(settling - 1, -1, -1) if not alike[k]), 0))
    return None
