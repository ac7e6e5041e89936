"""How the work of each operation grows: the same step logged at a dim and at one nearby, without any clock."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher

from stepscale.bench.counting.operation_counts import Logged

LONGEST = 5_000  # operations of a log that is matched by its longest runs
LISTS = re.compile(r"stack$|cat$|_foreach_")  # operations that take any number of tensors


def second_dims(dim: int) -> Iterator[int]:
    """Yield the dims to log at beside ``dim``: an eighth below, then its neighbours, should that be beyond a switch."""
    yield from dict.fromkeys([dim - dim // 8 if dim >= 16 else dim + 1, dim + 1, dim - 1 if dim > 1 else dim + 2])


def exponents(here: Sequence[Logged], there: Sequence[Logged], dim: int, second_dim: int) -> list[float | None]:
    """Return d log work / d log dim of each operation logged at ``dim``, from its counterpart at ``second_dim``.

    0 of an operation without work, as a view. None where it has no counterpart, or works there and not here.
    """
    found: list[float | None] = []
    for operation, place in zip(here, counterparts(here, there), strict=True):
        other = None if place is None else there[place].work
        if not operation.work:
            found.append(None if other else 0.0)
        elif not other:
            found.append(None)
        else:
            found.append(math.log(operation.work / other) / math.log(dim / second_dim))
    return found


def counterparts(here: Sequence[Logged], there: Sequence[Logged]) -> list[int | None]:
    """Return the place of each operation's counterpart: the same, where both logs hold the same operations.

    Where they do not, since a method switches between the dims, the longest runs that agree are matched. In long logs,
    as of loops that grow with the dim, that would take minutes: there an operation's counterpart is the one as far
    among those of its kind (``_as_far``).
    """
    one, other = ([(operation.name, _ranks(operation)) for operation in log] for log in (here, there))
    if one == other:
        return list(range(len(one)))
    if len(one) * len(other) > LONGEST**2:
        return _consistent(_as_far(here, there), here, there)
    found: list[int | None] = [None] * len(one)
    for block in SequenceMatcher(a=one, b=other, autojunk=False).get_matching_blocks():
        for k in range(block.size):
            found[block.a + k] = block.b + k
    return found


def _as_far(here: Sequence[Logged], there: Sequence[Logged]) -> list[int | None]:
    """Match the k-th of n operations of a kind to the one at k / n of those of the other log.

    Of a kind are those of one name and of the same shapes, and of those whose shapes one log alone has, of one name and
    as many dimensions.
    """
    both = set(map(_shaped, here)) & set(map(_shaped, there))

    def kind(operation: Logged) -> Hashable:
        exact = _shaped(operation)
        return exact if exact in both else (operation.name, _ranks(operation))

    places, others = defaultdict[Hashable, list[int]](list), defaultdict[Hashable, list[int]](list)
    for log, of in ((here, places), (there, others)):
        for place, operation in enumerate(log):
            of[kind(operation)].append(place)
    found: list[int | None] = [None] * len(here)
    for name, own in places.items():
        for k, place in enumerate(own) if others[name] else ():
            found[place] = others[name][k * len(others[name]) // len(own)]
    return found


def _consistent(found: list[int | None], here: Sequence[Logged], there: Sequence[Logged]) -> list[int | None]:
    """Leave out operations of which those of the same shapes have counterparts of several shapes: some are wrong."""
    shapes = defaultdict[Hashable, set[Hashable]](set)
    for operation, place in zip(here, found, strict=True):
        shapes[_shaped(operation)].add(None if place is None else _shaped(there[place]))
    return [
        place if len(shapes[_shaped(operation)]) == 1 else None for operation, place in zip(here, found, strict=True)
    ]


def _shaped(operation: Logged) -> Hashable:
    """Return an operation's name and shapes; of a list, the shape of each kind of tensor in it."""
    shapes = map(tuple, operation.shapes)
    return operation.name, tuple(dict.fromkeys(shapes)) if LISTS.match(operation.name) else tuple(shapes)


def _ranks(operation: Logged) -> tuple[int, ...]:
    """Return the ranks of what an operation takes; of one that takes a list, each once, however long the list is."""
    ranks = map(len, operation.shapes)
    return tuple(dict.fromkeys(ranks)) if LISTS.match(operation.name) else tuple(ranks)
