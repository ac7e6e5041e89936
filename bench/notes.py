"""What is extra can fail; what is already measured must not be lost by it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Notes(dict[str, str]):
    """Reasons why something extra is not in a record, by what it is; they are part of the record."""

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Note what goes wrong in the block, and go on."""
        try:
            yield
        except (Exception, SystemExit) as error:  # the latter from a user's code
            self[what] = one_line(error)


LONGEST = 500  # letters of a reason, and of a line of a traceback
LAST = 100  # lines of a traceback


def one_line(error: BaseException) -> str:
    """Return an error's type and message in one printable line of at most ``LONGEST`` letters.

    A message may be anything: megabytes, control characters, half a surrogate pair, a ``__str__`` that raises.
    """
    try:
        message = str(error)
    except BaseException:
        message = "(its message cannot be read)"
    lines = f"{type(error).__name__}: {message[: 2 * LONGEST]}".strip().splitlines()
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return printable(text)


def trace(error: BaseException) -> str:
    """Return the last ``LAST`` lines of an error's traceback, each printable; files by their names below ``sys.path``.

    Where packages lie on this machine is nobody's business, and a record may be published.
    """
    text = "".join(traceback.format_exception(error))
    for folder in sorted({*sys.path, str(Path(__file__).parents[1])}, key=len, reverse=True):
        text = text.replace(f'File "{folder}/', 'File "') if folder.strip("/") else text
    return "\n".join(map(printable, text.splitlines()[-LAST:]))


def printable(text: str) -> str:
    """Return a text with everything replaced that a terminal, a table or UTF-8 cannot take, and not too long."""
    whole = clean(text)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def clean(text: str) -> str:
    """Return a text with everything replaced that a terminal, a table or UTF-8 cannot take."""
    if text.isprintable():  # nearly always: tables ask it of every name
        return text
    return "".join(letter if letter.isprintable() else "�" for letter in text)
