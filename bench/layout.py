"""Sections of a report, laid out as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import html
from typing import NamedTuple

import pandas as pd

from stepscale.bench.plots import Drawn
from stepscale.bench.schema import GROUP

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-size: 12.5px; margin: .5rem 0 1.5rem; }}
th, td {{ padding: .15rem .55rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
th {{ background: #f4f4f4; }} .wide {{ overflow-x: auto; }} svg {{ max-width: 100%; height: auto; }}
code {{ background: #f1f1f1; padding: 0 .2em; }} .where {{ color: #666; }}
</style></head><body>
{body}
</body></html>
"""


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
        parts += [f"# {section.title}", where, "\n".join(f"- {line}" for line in section.findings)]
        for title, table in section.tables.items():
            text = table.to_markdown(index=False, floatfmt=".4g", missingval="") if len(table) else "nothing to show"
            parts.append(f"## {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def page(sections: list[Section], figures: list[list[str]], where: str) -> str:
    """Lay out the HTML page with each section's figures as SVG elements; it needs no other file."""
    body = "\n".join(_body(section, drawn, where) for section, drawn in zip(sections, figures, strict=True))
    return PAGE.format(title=html.escape(" · ".join(section.title for section in sections)), body=body)


def varying(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Leave out the axes that do not vary within the run."""
    return table.drop(columns=[column for column in GROUP if column in table and cells[column].nunique() == 1])


def _body(section: Section, figures: list[str], where: str) -> str:
    findings = "\n".join(f"<li>{_inline(line)}</li>" for line in section.findings)
    tables = "\n".join(
        f'<h2>{html.escape(title)}</h2><div class="wide">{_html(table)}</div>'
        for title, table in section.tables.items()
    )
    heading = f'<h1>{html.escape(section.title)}</h1><p class="where">{html.escape(where)}</p>'
    return "\n".join([heading, f"<ul>\n{findings}\n</ul>", *figures, tables])


def _html(table: pd.DataFrame) -> str:
    if not len(table):
        return "<p>nothing to show</p>"
    return table.to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="", border=0)


def _inline(line: str) -> str:
    """Escape, with `code` and **bold** of Markdown."""
    text = html.escape(line)
    for mark, tag in (("**", "strong"), ("`", "code")):
        pieces = text.split(mark)
        text = "".join(f"<{tag}>{piece}</{tag}>" if k % 2 else piece for k, piece in enumerate(pieces))
    return text
