"""Sections of a report, laid out as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Hashable
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

TableRow = dict[Hashable, Any]  # as pandas gives it, which does not say what a column holds


class Section(NamedTuple):
    """One part of a report: what a kind of records tells."""

    title: str
    findings: list[str]  # Markdown, a sentence or two each
    figures: list[Drawn]
    tables: dict[str, pd.DataFrame]  # by title, for people
    files: dict[str, pd.DataFrame]  # by name, for machines
    overview: str  # the table to print


def markdown(sections: list[Section], where: str) -> str:
    """Lay out the summary: findings first."""
    parts = []
    for section in sections:
        findings = "\n".join(f"- {inactive_outside_code(line)}" for line in section.findings)
        parts += [f"# {section.title}", inactive(where), findings]
        parts += [f"## {title}\n\n{_markdown_table(table)}" for title, table in section.tables.items()]
    return "\n\n".join(parts) + "\n"


def page(sections: list[Section], figures: list[list[str]], where: str) -> str:
    """Lay out the HTML page with each section's figures as SVG elements; it needs no other file."""
    folder = FileSystemLoader(Path(__file__).parent)
    layout = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    layout.filters |= {"inline_markdown": _inline_markdown, "html_table": _html_table}
    parts = list(zip(sections, figures, strict=True))
    return layout.get_template("page.html.j2").render(sections=sections, parts=parts, where=where)


def varying(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Leave out the axes that do not vary within the run."""
    return table.drop(columns=[column for column in GROUP if column in table and cells[column].nunique() == 1])


def inactive(text: str) -> str:
    """Return plain text as a line of Markdown in which it makes no tag, no link and no cell of a table."""
    return re.sub(ACTIVE, _entity, " ".join(text.splitlines()))


def inactive_outside_code(line: str) -> str:
    """Do as ``inactive`` to a line of Markdown; its code spans stay, since nothing is active there."""
    kept = rf"(?P<kept>\\.|{CODE})"  # a backslash keeps the backtick behind it from opening code
    return re.sub(rf"{kept}|{ACTIVE}", lambda found: found["kept"] or _entity(found), " ".join(line.splitlines()))


def _entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def _markdown_table(table: pd.DataFrame) -> str:
    if not len(table):
        return "nothing to show"
    shown = table.rename(columns=lambda name: inactive(str(name)))
    shown = shown.map(lambda value: inactive(value) if isinstance(value, str) else value)
    return shown.to_markdown(index=False, floatfmt=".4g", missingval="")


def _html_table(table: pd.DataFrame) -> Markup:
    if not len(table):
        return Markup("<p>nothing to show</p>")
    # pandas escapes what the table holds
    return Markup(table.to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="", border=0))


def _inline_markdown(line: str) -> Markup:
    return Markup(INLINE.renderInline(line))
