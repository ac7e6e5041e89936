"""The pictures of the section on scaling, of simulated steps whose work is known."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from stepscale.bench.report import scaling_figures, scaling_orders, scaling_section, style
from stepscale.bench.report import scaling_tables as tables
from stepscale.bench.report.scaling_tables import Judged
from tests.support.reported import NAIVE, STEPS, numbers


def orders(judged: Judged, **replaced: pd.DataFrame) -> Figure:
    main = tables.groups(judged.cells)[0]
    parts = {name: tables.of_group(getattr(judged, name), main) for name in ("shares", "growth", "times")}
    return scaling_orders.orders_figure(**parts | replaced, title="")


def stack(ax: Axes, dim: float) -> list[float]:
    """Heights of a panel's areas at a dim, from the bottom up."""
    found = []
    for area in ax.collections:
        at = [y for x, y in area.get_paths()[0].vertices if x == dim]
        found.append(max(at) - min(at))
    return found


def test_the_shares_are_stacked_in_order_with_the_cubic_on_top(judged: Judged) -> None:
    panels = {ax.get_title(loc="left").split("\n")[0]: ax for ax in orders(judged).axes}
    for dim in (64, 1000):
        seconds = STEPS["layerwise"].seconds(dim)
        assert stack(panels["layerwise"], dim) == pytest.approx(list(seconds / seconds.sum()), abs=0.05)
        assert len(stack(panels["relative"], dim)) == 3
    assert panels["layerwise"].collections[-1].get_hatch() == "////"
    assert all(area.get_hatch() is None for area in panels["layerwise"].collections[:-1])
    assert [label.get_text().split("\n")[0] for label in panels["naive"].get_xticklabels()] == ["256", "128", "64"]


def test_panels_are_sorted_by_their_cubic_share_which_the_title_says(judged: Judged) -> None:
    titles = [ax.get_title(loc="left") for ax in orders(judged).axes if ax.axison]
    assert titles[0].startswith("naive\n")
    shares = [numbers(title.split("\n")[1])[0] if "%" in title else 0 for title in titles]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0
    assert titles[-1].endswith("no cubic work")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("relative", "relative"),
        ("shampoo[direction.schedule.inverse=100]", "shampoo[inverse=100]"),
        ("adam[update.lr=0.1,update.betas.0=0.95,x=1]", "adam[lr=0.1,0=0.95,x=1]"),
        ("a" * 40, "a" * 35 + "…"),
    ],
)
def test_a_title_is_as_short_as_its_panel_is_wide(name: str, title: str) -> None:
    assert scaling_orders.title_of(name) == title


def test_unknown_and_higher_orders_have_looks_of_their_own(judged: Judged) -> None:
    main = tables.groups(judged.cells)[0]
    own = tables.of_group(judged.shares, main)
    some = own[(own["optimizer"] == "layerwise") & (own["order"] == 0)]
    quarters = [some.assign(order=order, share=0.25) for order in (-1, 2, 4, 5)]
    made = pd.concat([own[own["optimizer"] != "layerwise"], *quarters])
    figure = orders(judged, shares=made)
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("layerwise"))
    assert stack(panel, 256) == pytest.approx([0.25, 0.25, 0.5])
    assert [area.get_hatch() for area in panel.collections] == [None, "----", "xxxx"]
    assert "unknown order" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_what_does_not_grow_and_fits(judged: Judged) -> None:
    own = tables.of_group(judged.shares, tables.groups(judged.cells)[0])
    figure = orders(judged, shares=pd.concat([own, *(own.assign(order=order) for order in scaling_orders.LOOKS)]))
    figure.draw_without_rendering()
    texts = figure.legends[0].get_texts()
    assert texts[-1].get_text() == "no growth with d: calls, Python, work outside torch"
    assert len(texts) == len(scaling_orders.LOOKS)
    assert all(0 < text.get_window_extent().x0 < text.get_window_extent().x1 < figure.bbox.x1 for text in texts)


def test_a_panel_without_shares_says_why(judged: Judged) -> None:
    main = tables.groups(judged.cells)[0]
    own = tables.of_group(judged.shares, main)
    figure = orders(judged, shares=own[own["optimizer"] != "kfac"])
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("kfac"))
    assert [text.get_text() for text in panel.texts] == ["its operations were\nnot timed one by one"]
    growth, times = tables.of_group(judged.growth, main), tables.of_group(judged.times, main)
    of_kfac = {"shares": own[own["optimizer"] != "kfac"]}
    for changed, said in (
        ({"growth": growth.assign(flop_exponent=np.nan)}, "its operations were\nlogged at one dim only"),
        ({"times": times.assign(operations=np.nan)}, "its operations\ncould not be logged"),
        ({"growth": growth[growth["optimizer"] != "kfac"]}, "its cells were disturbed,\nor wait for the host"),
    ):
        panels = orders(judged, **of_kfac | changed).axes
        panel = next(ax for ax in panels if ax.get_title(loc="left").startswith("kfac"))
        assert [text.get_text() for text in panel.texts] == [said]
    times = times.assign(
        ok=times["ok"].mask(times["optimizer"] == "kfac", 0),
        status=times["status"].mask(times["optimizer"] == "kfac", "out_of_memory"),
    )
    figure = orders(judged, shares=own[own["optimizer"] != "kfac"], times=times)
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("kfac"))
    assert [text.get_text() for text in panel.texts] == ["out of memory"]


def test_one_dim_is_a_bar(judged: Judged) -> None:
    main = tables.groups(judged.cells)[0]
    own = tables.of_group(judged.shares, main)
    panel = orders(judged, shares=own[own["dim"] == 256]).axes[1]
    assert panel.get_xlim() == pytest.approx((0.8 * 256, 1.25 * 256))
    assert [label.get_text().split("\n")[0] for label in panel.get_xticklabels()] == ["256"]


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return float(
        np.dot(
            [0.2126, 0.7152, 0.0722],
            [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)],
        )
    )


def test_neighbouring_orders_differ_in_grey_or_by_hatching() -> None:
    looks = list(scaling_orders.LOOKS.values())
    for below, above in itertools.pairwise(looks):
        lighter, darker = sorted((luminance(below["facecolor"]), luminance(above["facecolor"])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 1.25 or below.get("hatch") != above.get("hatch")


def scaling(judged: Judged, **replaced: pd.DataFrame) -> Figure:
    main = tables.groups(judged.cells)[0]
    parts = {name: tables.of_group(getattr(judged, name), main) for name in ("times", "slopes")}
    return scaling_figures.scaling_figure(**parts | replaced, look=style.styles(judged.times["optimizer"]), title="")


def test_slopes_have_a_panel_only_where_all_are_narrow(judged: Judged) -> None:
    titles = [ax.get_title() for ax in scaling(judged).axes]
    assert any("slope" in title for title in titles)
    slopes = tables.of_group(judged.slopes, tables.groups(judged.cells)[0]).reset_index(drop=True)
    slopes.loc[0, "low"] = slopes.loc[0, "high"] - 1.01
    assert len(scaling(judged, slopes=slopes).axes) == len(titles) - 1


def curves(ax: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): line.get_data() for line in lines if len(line.get_xdata()) > 1}


def test_guides_meet_no_curve_and_are_named_at_their_ends(judged: Judged) -> None:
    figure = scaling(judged)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    guides = [
        line
        for line in ax.get_lines()
        if line.get_linestyle() == "--" and len(line.get_xdata()) == 2 and line.get_zorder() == 0
    ]
    assert [np.diff(np.log(g.get_ydata()))[0] / np.diff(np.log(g.get_xdata()))[0] for g in guides] == pytest.approx(
        [2, 3]
    )
    for guide in guides:
        along = np.geomspace(*guide.get_xdata(), 20)
        height = np.exp(np.interp(np.log(along), np.log(guide.get_xdata()), np.log(guide.get_ydata())))
        for dims, values in curves(ax).values():
            curve = np.exp(np.interp(np.log(along), np.log(dims), np.log(values), left=np.inf, right=np.inf))
            assert (height < curve).all()
    labels = [text for text in ax.texts if text.get_text() in ("d²", "d³")]
    assert len(labels) == 2
    for label in labels:
        box = label.get_window_extent()
        assert ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1)
        for dims, values in curves(ax).values():
            points = ax.transData.transform(
                np.column_stack(
                    [
                        np.geomspace(dims[0], dims[-1], 200),
                        np.exp(np.interp(np.log(np.geomspace(dims[0], dims[-1], 200)), np.log(dims), np.log(values))),
                    ]
                )
            )
            assert not any(box.contains(x, y) for x, y in points)


def test_names_at_the_ends_of_coinciding_curves_do_not_touch(judged: Judged) -> None:
    figure = scaling(judged)
    figure.draw_without_rendering()
    names = [
        text for text in figure.axes[0].texts if isinstance(text, Annotation) and text.get_text() in {*STEPS, *NAIVE}
    ]
    assert {text.get_text() for text in names} == {*STEPS, *NAIVE}
    boxes = [text.get_window_extent() for text in names if text.get_text() != "naive"]
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] - 1.5 for below, above in itertools.pairwise(heights))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_neighbouring_looks_differ_in_line_marker_and_size() -> None:
    looks = list(style.styles([f"optimizer{k:02d}" for k in range(16)]).values())
    for one, other in itertools.pairwise(looks):
        assert one["marker"] != other["marker"] and one["linestyle"] != other["linestyle"]
        assert one["markersize"] != other["markersize"]


def test_every_figure_says_what_it_shows(judged: Judged, tmp_path: Path) -> None:
    drawn = scaling_section.figures(judged, str)
    assert [figure.stem for figure in drawn] == ["orders", "scaling", None, None]
    for figure in drawn:
        head = style.written(figure, tmp_path).split(">")[0]
        (label,) = re.findall(r'role="img" aria-label="([^"]+)"', head)
        assert label.endswith(".") and "dim" in label
    assert "layerwise: cubic" in drawn[0].alt and "relative: no cubic work" in drawn[0].alt
