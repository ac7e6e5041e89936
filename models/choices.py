"""One check, and one sentence, for every option that is one of a few words."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

Choice = TypeVar("Choice", bound=StrEnum)


def one_of(option: str, allowed: Iterable[Choice], value: str) -> Choice:
    """Return the member of ``allowed`` that ``value`` names; ``allowed`` is an enum or some members of one.

    Raises:
        ValueError: there is none; ``option`` is what the message calls it.
    """
    choices = list(allowed)
    for choice in choices:
        if choice == value:
            return choice
    raise ValueError(f"{option} must be one of {', '.join(choices)}, got {value!r}")
