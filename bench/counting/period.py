"""After how many steps the work of a step repeats, found by watching it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

WATCHED = 320  # steps, of which the first quarter may be settling: a period of up to 120 is met twice


def repeats_after(works: Sequence[Hashable], least: int = 1) -> int | None:
    """Return the shortest multiple of ``least`` after which the work of successive steps repeats; None without one.

    The first quarter is not looked at: an update may warm up. The rest must hold the period twice.
    """
    settled = works[len(works) // 4 :]
    for period in range(least, len(settled) // 2 + 1, least):
        if all(one == other for one, other in zip(settled, settled[period:], strict=False)):
            return period
    return None
