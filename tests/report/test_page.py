"""What users name is shown in a report, and does nothing in it."""

import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from stepscale.bench.report import page
from stepscale.bench.report.page import Section

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "[x](http://there.invalid)",
    "![x](http://there.invalid/x.png)",
    "[x][y]",
    "[x]: http://there.invalid",
    "<http://there.invalid>",
    "&lt;b&gt;",
    "one\n\n<b>two</b>",
    "`<b>x</b>",
    r"\`<b>x</b>`",
    "``<b>x</b>`",
]
# an independent reader: all of CommonMark and GitHub's tables, HTML too
READER = MarkdownIt("commonmark", {"html": True}).enable("table")
ALLOWED = {"h1", "h2", "p", "ul", "li", "strong", "em", "code", "table", "thead", "tbody", "tr", "th", "td"}


SVG = ["<svg></svg>"]


def section(label: str) -> Section:
    table = pd.DataFrame({"optimizer": [label, "kfac"], f"over {label}": [1.5, float("nan")]})
    findings = [f"`kfac`, model {label}: **cubic**.", f"Left out: {label}.", f"`{label}` is faster."]
    return Section("Scaling", findings, [], {"Growth": table, "Nothing": table[:0]}, {}, "")


def tags(html: str) -> set[str]:
    return set(re.findall(r"<([^\s>/]+)", html))


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_makes_no_tag_no_link_and_no_cell_of_the_summary(label: str) -> None:
    html = READER.render(page.markdown([section(label)], label))
    assert tags(html) <= ALLOWED
    assert html.count("<tr>") == 3 and html.count("<td") == 4 and html.count("<li>") == 3


@pytest.mark.parametrize("label", [label for label in HOSTILE if "`" not in label])
def test_a_label_is_read_in_the_summary_as_it_is_written(label: str) -> None:
    tokens = READER.parse(page.markdown([section(label)], "here"))
    shown = ["".join(part.content for part in token.children) for token in tokens if token.children]
    assert " ".join(label.splitlines()) in shown
    assert shown.count(f"over {' '.join(label.splitlines())}") == 1


def test_usual_labels_stay_in_the_summary_as_they_are() -> None:
    label = "relative_fused[track=False]"
    text = page.markdown([section(label)], "AMD EPYC, torch 2.13.0+cpu")
    assert f"- Left out: {label}.\n" in text and f"| {label} |" in text and "&" not in text


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_makes_no_tag_of_the_page(label: str) -> None:
    usual, hostile = (page.page([section(name)], [SVG], name) for name in ("mine", label))
    assert tags(hostile) <= tags(usual) | {"code", "em"}
    assert hostile.count("<td>") == usual.count("<td>")


@pytest.mark.parametrize(
    ("finding", "shown"),
    [
        ("and 2**3 and `unclosed`", "and 2**3 and <code>unclosed</code>"),
        ("`relative[a**b]` costs **x**", "<code>relative[a**b]</code> costs <strong>x</strong>"),
        ("`one` and `two`", "<code>one</code> and <code>two</code>"),
        ("model_a_b [1, 2] < 3 & more", "model_a_b [1, 2] &lt; 3 &amp; more"),
        ("[x](http://a.invalid)", "[x](http://a.invalid)"),
    ],
)
def test_findings_are_inline_markdown_on_the_page(finding: str, shown: str) -> None:
    html = page.page([Section("Title", [finding], [], {}, {}, "")], [[]], "here")
    assert f"<li>{shown}</li>" in html


def test_the_page_holds_all_of_every_section() -> None:
    one, two = section("mine"), section("other")._replace(title="What & why")
    html = page.page([one, two], [SVG, SVG], "a <machine>")
    assert "<title>Scaling · What &amp; why</title>" in html
    assert html.count('<p class="where">a &lt;machine&gt;</p>') == 2
    assert html.count("<svg></svg>") == 2 and html.count("<p>nothing to show</p>") == 2
    assert html.index("<ul>") < html.index("<svg>") < html.index("<h2>Growth</h2>") < html.index("What &amp; why</h1>")
    assert "<td>mine</td>" in html and "<td>1.5</td>" in html and "<td></td>" in html
