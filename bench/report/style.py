"""How every figure looks, and how it is written; no state is changed at import."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter

# Okabe & Ito 2008, "Color universal design", less its yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "h")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
LARGEST, SMALLEST = 7.5, 3.3  # markers, points: where curves coincide, a later one lies inside an earlier one
DPI = 150
WIDTH = 12.0  # inches of a figure that fills the page
Style = dict[str, Any]  # words of matplotlib's
Where = Callable[[str], str]  # of a machine's name: what else figures of it hang on, and when they were taken
GUIDE: Style = {"color": "0.6", "linewidth": 0.9, "zorder": 0}
RC: Any = {"text.parse_math": False}  # a name is its letters, dollars too
RC |= {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}


def styles(optimizers: Iterable[str]) -> dict[str, Style]:
    """Give each optimizer a look that no other of the run has, told apart also in grey and where curves coincide.

    Neighbours differ in colour, marker, the marker's size and the line; after 8 the line is another one.
    """
    names = sorted(set(optimizers))
    sizes = np.linspace(LARGEST, SMALLEST, len(COLOURS))
    looks = {}
    for k, name in enumerate(names):
        turn, place = divmod(k, len(COLOURS))
        looks[name] = {
            "color": COLOURS[place],
            "marker": MARKERS[place],
            "markersize": float(sizes[place]),
            "linestyle": LINES[(place + turn) % len(LINES)],
            "linewidth": 1.3,
        }
    return looks


def save(figure: Figure, target: Path | IO[str], kind: str) -> None:
    """Write a figure; SVG keeps its text as text, and the same figure gives the same file.

    ``savefig`` would draw it twice, the first time to see what a layout engine changes.
    """
    figure.set_dpi(DPI)
    if kind == "svg":
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stepscale"}):
            FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(target)


def plain_numbers(axis: Axis) -> None:
    """Write a logarithmic axis's numbers as letters; matplotlib's own way is mathematics."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(LogFormatter())


def suffix(axis: str, value: object) -> str:
    """Name a file by a fact: ``-dim64``, ``-photos-centre-False``."""
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", str(value)).strip("-")
    return f"-{axis}{words}" if isinstance(value, int) else f"-{words}"


class Drawn(NamedTuple):
    """A figure, what it shows in a sentence, and the name of its files; None for one that is in the page alone."""

    figure: Figure
    alt: str
    stem: str | None = None


def written(drawn: Drawn, folder: Path) -> str:
    """Return a figure as an SVG element; where it has a name, write ``.png`` and ``.svg`` into the folder as well."""
    buffer, figure = io.StringIO(), drawn.figure
    if (engine := figure.get_layout_engine()) is not None:  # once, and not for each file
        engine.execute(figure)
        figure.set_layout_engine("none")
    save(figure, buffer, "svg")
    svg = buffer.getvalue().replace("<svg ", f'<svg role="img" aria-label="{escape(drawn.alt)}" ', 1)
    if drawn.stem is not None:
        save(figure, folder / f"{drawn.stem}.png", "png")
        (folder / f"{drawn.stem}.svg").write_text(svg, encoding="utf-8", errors="backslashreplace")
    return svg[svg.index("<svg") :]
