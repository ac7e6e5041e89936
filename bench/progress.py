"""One bar for whatever takes long: how far it is, and the time left; where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[float, str], None]


@contextmanager
def bar(label: str) -> Iterator[Show]:
    """Yield what shows a share of the whole, from 0 to 1, and a few words; it leaves nothing behind at its end.

    It writes to the standard error, and only where that is a terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        TaskProgressColumn(),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=1.0, words="")
        yield lambda share, words: progress.update(task, completed=share, words=words)
