"""How every figure looks, and how it is written; no state is changed at import."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color universal design", less its yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "h")
LINES = ("-", "--", ":")
Style = dict[str, Any]  # words of matplotlib's
GUIDE: Style = {"color": "0.6", "linewidth": 0.9, "zorder": 0}
RC: Any = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False}


def styles(optimizers: Iterable[str]) -> dict[str, Style]:
    """Give each optimizer a look that no other of the run has: 8 colours with markers, then a new line style."""
    names = sorted(set(optimizers))
    looks = itertools.product(LINES, zip(COLOURS, MARKERS, strict=True))
    return {
        name: {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.3}
        for name, (line, (colour, marker)) in zip(names, itertools.cycle(looks), strict=False)
    }


def save(figure: Figure, target: Path | IO[str], kind: str) -> None:
    """Write a figure; SVG keeps its text as text, and the same figure gives the same file."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stepscale"}):
        figure.savefig(target, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


class Drawn(NamedTuple):
    """A figure, and the name of its files; None for one that is in the page alone."""

    figure: Figure
    stem: str | None = None


def written(drawn: Drawn, folder: Path) -> str:
    """Return a figure as an SVG element; where it has a name, write ``.png`` and ``.svg`` into the folder as well."""
    buffer, figure = io.StringIO(), drawn.figure
    if (engine := figure.get_layout_engine()) is not None:  # once, and not for each file
        engine.execute(figure)
        figure.set_layout_engine("none")
    save(figure, buffer, "svg")
    if drawn.stem is not None:
        save(figure, folder / f"{drawn.stem}.png", "png")
        (folder / f"{drawn.stem}.svg").write_text(buffer.getvalue(), encoding="utf-8")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
