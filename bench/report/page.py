"""Sections of a report, laid out as Markdown, as text and as one self-contained HTML page."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from stepscale.bench.records.schema import GROUP
from stepscale.bench.report.style import Drawn

# `code`, *emphasis* and **strong** alone: a finding quotes users' labels, which must make no link and no tag
INLINE = MarkdownIt("zero").enable(["backticks", "emphasis"])
CODE = r"(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
# a tag, a table's next cell, an entity, a bracket behind which a link's address would come, or that defines a link
ACTIVE = r"<|\||&(?=#?\w+;)|\](?=[(\[])|^\["
HEAD = 10  # characters of a column's name in a line of a terminal
DIGITS = 3  # of a number of which no interval is known
LEAST_DIGITS = 2  # of one whose interval is wider than that
MOST_DIGITS = 4  # of one whose interval is narrower than that, and in tables that were not laid out for people

TableRow = dict[Hashable, Any]  # as pandas gives it, which does not say what a column holds


class Shown(NamedTuple):
    """A cell of a table for people: its text, and the number by which its column is sorted."""

    text: str
    key: float


class Section(NamedTuple):
    """One part of a report: what a kind of records tells. What answers its question stands first."""

    title: str
    asked: str  # the question, in one line
    headline: dict[str, pd.DataFrame]  # by title: the answer; in the page, the summary and the terminal
    findings: list[str]  # Markdown, a sentence or two each
    figures: list[Drawn]
    glossary: dict[str, str]  # Markdown, by word
    tables: dict[str, pd.DataFrame]  # by title, for people: in the page alone
    files: dict[str, pd.DataFrame]  # by name, for machines


def markdown(sections: list[Section], where: str) -> str:
    """Lay out the summary: the answer, the findings, the words."""
    parts = []
    for section in sections:
        parts += [f"# {section.title}", section.asked, inactive(where)]
        parts += [f"## {inactive(title)}\n\n{_markdown_table(table)}" for title, table in section.headline.items()]
        parts += ["## Findings", "\n".join(f"- {inactive_outside_code(line)}" for line in section.findings)]
        if section.glossary:
            words = [f"- **{word}**: {meaning}" for word, meaning in section.glossary.items()]
            parts += ["## Words", "\n".join(words)]
    return "\n\n".join([*parts, "Figures and all other tables are in `report.html`."]) + "\n"


def text(section: Section) -> str:
    """Lay out what a terminal shows: the findings, then the answer, which stays on the screen."""
    tables = [f"{title}\n\n{text_table(table)}" for title, table in section.headline.items()]
    return "\n\n".join(["\n".join(f"- {line}" for line in section.findings), *tables])


def page(sections: list[Section], figures: list[list[str]], where: str) -> str:
    """Lay out the HTML page with each section's figures as SVG elements; it needs no other file."""
    folder = FileSystemLoader(Path(__file__).parent)
    layout = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    layout.filters |= {"inline_markdown": _inline_markdown, "cells": _cells, "numeric": _numeric}
    layout.tests["known"] = math.isfinite
    parts = list(zip(sections, figures, strict=True))
    return layout.get_template("page.html.j2").render(sections=sections, parts=parts, where=where)


def varying(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Leave out the axes that do not vary within the run."""
    return table.drop(columns=[column for column in GROUP if column in table and cells[column].nunique() == 1])


def machine_column(cells: pd.DataFrame) -> list[str]:
    """Return the column of a table that says on which machine, where that is not the same for all cells."""
    return ["machine"] * bool(cells["machine"].nunique() > 1)


def measured(value: float, low: float, high: float, unit: str = "") -> str:
    """Write a figure with its 95 % interval, in the digits that the interval bears.

    The last digit is the first of the interval's half width: ``measured(3.412, 3.06, 3.77)`` is ``3.4 [3.1, 3.8]``; two
    digits are the fewest. Without an interval there are ``DIGITS``. ``unit`` stands between the two: ``3× [2, 4]``.
    """
    if not math.isfinite(value):
        return ""
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(value) + unit
    if not _plain(value):
        return f"{number(value)}{unit} [{number(low)}, {number(high)}]"
    half, own = (high - low) / 2, _exponent(value)
    places = min(max(-_exponent(half), LEAST_DIGITS - 1 - own), MOST_DIGITS - 1 - own) if half else DIGITS - 1 - own
    return f"{_rounded(value, places)}{unit} [{_rounded(low, places)}, {_rounded(high, places)}]"


def percent(share: float, low: float = math.nan, high: float = math.nan) -> str:
    """Write a share, 0 … 1, in whole percent, with its interval where one is known that is no point.

    Where the interval is narrower than two of them, in tenths.
    """
    if not math.isfinite(low) or low == high:
        return f"{100 * share:.0f} %"
    places = int(high - low < 0.02)
    return f"{100 * share:.{places}f} % [{100 * low:.{places}f}, {100 * high:.{places}f}]"


def number(value: float, digits: int = DIGITS) -> str:
    """Write a number in so many digits, a whole one in all of its own, one that is none as nothing."""
    if not math.isfinite(value):
        return "" if math.isnan(value) else "never"
    if float(value).is_integer() and abs(value) < 1e9:
        return str(int(value))
    return _rounded(value, max(0, digits - 1 - _exponent(value))) if _plain(value) else f"{value:.{digits}g}"


def _plain(value: float) -> bool:
    """Whether a number is written without a power of ten."""
    return value == 0 or 1e-4 < abs(value) < 1e9


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _rounded(value: float, places: int) -> str:
    return f"{round(value, places):.{max(0, places)}f}"


def inactive(text: str) -> str:
    """Return plain text as a line of Markdown in which it makes no tag, no link and no cell of a table."""
    return re.sub(ACTIVE, _entity, " ".join(text.splitlines()))


def inactive_outside_code(line: str) -> str:
    """Do as ``inactive`` to a line of Markdown; its code spans stay, since nothing is active there."""
    kept = rf"(?P<kept>\\.|{CODE})"  # a backslash keeps the backtick behind it from opening code
    return re.sub(rf"{kept}|{ACTIVE}", lambda found: found["kept"] or _entity(found), " ".join(line.splitlines()))


def _entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def _cell(value: object) -> Shown:
    """What a table shows of a value; text is sorted as text, and so has no key."""
    if isinstance(value, Shown):
        return value
    if isinstance(value, bool | str) or not pd.api.types.is_number(value):
        missing = value is None or value is pd.NA or value is pd.NaT
        return Shown("" if missing else str(value), math.nan)
    return Shown(number(float(value), MOST_DIGITS), float(value))  # type: ignore[arg-type]


def _cells(table: pd.DataFrame) -> list[list[Shown]]:
    return [[_cell(value) for value in row] for row in table.itertuples(index=False, name=None)]


def _markdown_table(table: pd.DataFrame) -> str:
    return _laid_out([inactive(str(name)) for name in table], _cells(table), "pipe", inactive)


def text_table(table: pd.DataFrame) -> str:
    """Lay out a table for a terminal."""
    names = [textwrap.fill(str(name), HEAD, break_long_words=False) for name in table]  # lines of a terminal are short
    return _laid_out(names, _cells(table), "simple", str)


def _laid_out(names: list[str], rows: list[list[Shown]], kind: str, written: Callable[[str], str]) -> str:
    """Write a table for ``tabulate``'s format of that name, numbers to the right."""
    if not rows:
        return "nothing to show"
    sides = ["right" if numeric else "left" for numeric in _numeric(rows)]
    texts = [[written(cell.text) for cell in row] for row in rows]
    return pd.DataFrame(texts, columns=names).to_markdown(
        index=False, tablefmt=kind, colalign=sides, disable_numparse=True
    )


def _numeric(rows: list[list[Shown]]) -> list[bool]:
    """Tell which columns mostly hold numbers, with intervals perhaps, and no words."""
    wordless = [
        [not re.search(r"[A-Za-z]", cell.text) for cell in column if cell.text] for column in zip(*rows, strict=True)
    ]
    return [4 * sum(numbers) > 3 * len(numbers) for numbers in wordless]


def _inline_markdown(line: str) -> Markup:
    return Markup(INLINE.renderInline(line))
