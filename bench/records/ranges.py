"""The values that a record's parts can have: what lies outside is a damaged file or a wrong figure, and no measurement.

The bounds are far from anything that a machine does: they judge no result, and keep out what is impossible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

LARGEST = 2**31 - 1  # no tensor has more rows or columns
CENTURY_S = 3.2e9
DEEPEST, LONGEST = 50, 10_000  # of a configuration, and the letters of a text in it

Name = Annotated[str, Meta(max_length=LONGEST)]
Whole = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=LARGEST)]
Finite = Annotated[float, Meta(ge=-1.7e308, le=1.7e308)]
Positive = Annotated[float, Meta(gt=0, le=1.7e308)]
Seconds = Annotated[float, Meta(ge=0, le=CENTURY_S)]
StepSeconds = Annotated[float, Meta(ge=1e-12, le=CENTURY_S)]  # of what others are divided by
Amount = Annotated[float, Meta(ge=0, le=1e40)]  # FLOPs, calls, MiB, joules
Share = Annotated[float, Meta(ge=0, le=1)]
Cosine = Annotated[float, Meta(ge=-1.01, le=1.01)]  # which rounding takes beyond 1


def same_lengths(what: str, *lists: Sequence[object]) -> None:
    """See that lists which hold a value each of the same things are equally long.

    Raises:
        ValueError: they are not.
    """
    lengths = sorted(set(map(len, lists)))
    if len(lengths) > 1:
        raise ValueError(f"{what} are {' or '.join(map(str, lengths))}, which must be the same")


def refuse_boundless(value: object, depth: int = 0) -> None:
    """See that plain data of the user's are neither nested nor long without bounds.

    Raises:
        ValueError: they are.
    """
    if depth > DEEPEST:
        raise ValueError(f"a configuration is nested more than {DEEPEST} deep")
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"a configuration has a text of {len(value)} letters, {LONGEST} are the most")
    if isinstance(value, dict):
        refuse_boundless(list(value), depth)
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        refuse_boundless(part, depth + 1)
