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
    words = {"limit": "*products* alone"}
    return Section("Scaling", "Is it cubic?", {label: table}, findings, [], words, {"Nothing": table[:0]}, {})


def tags(html: str) -> set[str]:
    return set(re.findall(r"<([^\s>/]+)", html))


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_makes_no_tag_no_link_and_no_cell_of_the_summary(label: str) -> None:
    html = READER.render(page.markdown([section(label)], label))
    assert tags(html) <= ALLOWED
    assert html.count("<tr>") == 3 and html.count("<td") == 4 and html.count("<li>") == 3 + len(section("").glossary)


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
    assert (
        text.index(f"## {label}") < text.index("## Findings") < text.index("## Words\n\n- **limit**: *products* alone")
    )


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_makes_no_tag_of_the_page(label: str) -> None:
    usual, hostile = (page.page([section(name)], [SVG], name) for name in ("mine", label))
    assert tags(hostile) <= tags(usual) | {"code", "em"}
    assert hostile.count("<td") == usual.count("<td")


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
    html = page.page([Section("Title", "", {}, [finding], [], {}, {}, {})], [[]], "here")
    assert f"<li>{shown}</li>" in html


def test_the_page_holds_all_of_every_section() -> None:
    one, two = section("mine"), section("other")._replace(title="What & why")
    html = page.page([one, two], [SVG, SVG], "a <machine>")
    assert "<title>Scaling · What &amp; why</title>" in html
    assert (
        html.count('<p class="where">a &lt;machine&gt;</p>') == 2 and html.count('<p class="asked">Is it cubic?') == 2
    )
    assert html.count("<svg></svg>") == 2 and html.count("<p>nothing to show</p>") == 2
    order = [
        "<h1>Scaling</h1>",
        "<h2>mine</h2>",
        "<svg>",
        "<ul>",
        "<dt>limit</dt>",
        "<h2>Nothing</h2>",
        "What &amp; why</h1>",
    ]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    assert '<td class="text">mine</td>' in html and '<td data-key="1.5">1.500</td>' in html and "<td></td>" in html


def test_a_column_is_sorted_by_a_button_without_any_library() -> None:
    html = page.page([section("mine")], [[]], "here")
    heads = re.findall(r"<th[^>]*>(.*?)</th>", html)
    assert heads == [f'<button type="button">{name}</button>' for name in ("optimizer", "over mine")]
    assert html.count("<script>") == html.count("<script") == 1 and "aria-sort" in html
    assert re.search(r'role="region" tabindex="0" aria-label="mine"', html), "a wide table scrolls by keyboard"


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (3.412, 3.06, 3.77, "3.4 [3.1, 3.8]"),
        (3.412, 3.29, 3.53, "3.4 [3.3, 3.5]"),
        (20.6, 11, 38, "21 [11, 38]"),
        (0.0187, 0.0181, 0.0194, "0.0187 [0.0181, 0.0194]"),
        (652.3, 610, 697, "650 [610, 700]"),
        (104.4, 97.2, 112.9, "104 [97, 113]"),
        (1.0, 1.0, 1.0, "1.00 [1.00, 1.00]"),
        (3.14159265, 3.14159264, 3.14159266, "3.142 [3.142, 3.142]"),
        (4.0, 0.3, 55.0, "4.0 [0.3, 55.0]"),
        (1234.5, 0.0, float("inf"), "1234"),
        (12.345, float("nan"), float("nan"), "12.3"),
        (float("nan"), float("nan"), float("nan"), ""),
        (-2e-200, -3e-200, -1e-200, "-2e-200 [-3e-200, -1e-200]"),
    ],
)
def test_a_figure_has_the_digits_that_its_interval_bears(value: float, low: float, high: float, shown: str) -> None:
    assert page.measured(value, low, high) == shown


def test_numbers_and_shares_are_plain() -> None:
    cases = [(16384.0, "16384"), (0.5, "0.500"), (12345.6, "12346"), (0.0, "0"), (-9.876, "-9.88"), (2e12, "2e+12")]
    for value, shown in [*cases, (float("nan"), ""), (float("inf"), "never")]:
        assert page.number(value) == shown
    assert page.percent(0.571, 0.542, 0.604) == "57 % [54, 60]"
    assert page.percent(0.102, 0.098, 0.107) == "10.2 % [9.8, 10.7]" and page.percent(0.0, 0.0, 0.0) == "0 %"


def test_a_column_of_numbers_stands_to_the_right_even_if_one_is_missing() -> None:
    table = pd.DataFrame(
        {
            "ms": [page.Shown("3.4 [3.1, 3.8]", 3.4), "", "12", "7", "8", "out of memory"],
            "word": ["cubic 5 %", "", "none", "none", "none", "none"],
        }
    )
    html = page.page([section("mine")._replace(headline={"t": table})], [[]], "here")
    assert '<td data-key="3.4">3.4 [3.1, 3.8]</td><td class="text">cubic 5 %</td>' in html
    assert re.search(r"^ +12  none$", page.text_table(table), flags=re.MULTILINE)
    assert re.search(r"\|-+:\|:-+\|", page.markdown([section("mine")._replace(headline={"t": table})], "here"))
