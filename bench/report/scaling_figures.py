"""Figures of how a step's time grows, drawn from tables on given Axes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from scipy import optimize

from stepscale.bench.report.page import number
from stepscale.bench.report.style import GUIDE, RC, WIDTH, Style

NARROW_SLOPE = 0.5  # half-width of a slope's interval: wider ones do not tell 2 from 3, and there is no panel
CLEAR, GUIDE_SPAN = 0.75, 12.0  # how far guides lie below the lowest curve, and how far down they go: factors
WIDE = 24  # labels of dims across a panel as wide as the figure
LEGEND_WIDTH = 150  # characters
LINE = 11.0  # points from one name to the next, where curves end together
OFFSET, LETTER = 16.0, 4.8  # points from a curve's end to its name, and of a letter


def scaling_figure(times: pd.DataFrame, slopes: pd.DataFrame, look: dict[str, Style], title: str) -> Figure:
    """Draw a group's time against dim; below it memory, ratio to the limit and local slope, where they are known.

    Args:
        times: rows of ``step_times.times`` of one group.
        slopes: rows of ``step_times.local_slopes`` of the same group.
        look: ``styles`` of the whole run.
        title: what was measured, where and when.
    """
    narrow = len(slopes) > 0 and ((slopes["high"] - slopes["low"]) / 2 < NARROW_SLOPE).all()
    below = "M" + "R" * bool(times["ratio"].notna().any()) + "S" * bool(narrow)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 8.6), layout="constrained")
        axes = figure.subplot_mosaic(f"{'T' * len(below)};{below}", height_ratios=[1.35, 1])
        draw_times(axes["T"], times, look)
        draw_memory(axes["M"], times, look)
        if "R" in axes:
            draw_ratios(axes["R"], times, look)
        if "S" in axes:
            draw_slopes(axes["S"], slopes, look, times["dim"])
        figure.suptitle(title, fontsize=9, wrap=True)
        name_curves(figure, axes["T"], times, look)
    return figure


def draw_times(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Step time against dim, log-log, with d² and d³ guides; failed cells as crosses on the upper edge."""
    _draw(ax, times, look, "step_ms", "step_ms_low", "step_ms_high")
    ax.set(xscale="log", yscale="log", ylabel="step, ms (amortised)", title="Time of one step")
    _guides(ax, times)
    _end_caps(ax, times, look)
    axes_of_dims(ax, times["dim"], WIDE)


def draw_ratios(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Step time over the limit's, measured in the same loop."""
    _draw(ax, times, look, "ratio", "ratio_low", "ratio_high")
    ax.axhline(1, **GUIDE)
    ax.annotate("limit", (0.01, 1), xycoords=("axes fraction", "data"), color="0.4", va="bottom", fontsize=8)
    ax.set(xscale="log", yscale="log", ylabel="step / limit", title="Distance from the limit")
    axes_of_dims(ax, times["dim"])


def draw_memory(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Peak memory of the process that ran the step."""
    _draw(ax, times, look, "peak_mib")
    ax.set(xscale="log", yscale="log", ylabel="peak memory, MiB", title="Peak memory")
    axes_of_dims(ax, times["dim"])


def draw_slopes(ax: Axes, slopes: pd.DataFrame, look: dict[str, Style], dims: pd.Series) -> None:
    """Local slope of the step's time between neighbouring ``dims``, with its interval; 2 is quadratic, 3 cubic."""
    for name, part in slopes.groupby("optimizer"):
        style = look[str(name)]
        ax.plot(part["dim"], part["slope"], **style)
        ax.vlines(part["dim"], part["low"], part["high"], color=style["color"], linewidth=0.8)
    for order in (2, 3):
        ax.axhline(order, linestyle="--", **GUIDE)
    ax.set(xscale="log", ylim=(min(0.0, float(slopes["low"].min())), max(3.5, float(slopes["high"].max()))))
    ax.set(ylabel="Δ log time / Δ log dim", title="Local slope of the time (2 quadratic, 3 cubic)")
    axes_of_dims(ax, dims)


def _draw(ax: Axes, times: pd.DataFrame, look: dict[str, Style], column: str, *bounds: str) -> None:
    for name, part in times.groupby("optimizer"):
        known = part.dropna(subset=[column]).sort_values("dim")
        if not len(known):
            continue
        style = look[str(name)]
        ax.plot(known["dim"], known[column], label=str(name), **style)
        hollow = known[known["launch_bound"] | known["disturbed"]]
        ax.plot(hollow["dim"], hollow[column], **style | {"linestyle": "none", "markerfacecolor": "white"})
        if bounds:
            low, high = (known[bound].where(np.isfinite(known[bound])) for bound in bounds)
            ax.fill_between(known["dim"], low, high, color=style["color"], alpha=0.15, linewidth=0)


def _guides(ax: Axes, times: pd.DataFrame) -> None:
    """Draw d² and d³ from a point at the largest dim so far down that they meet no curve; name them at their ends."""
    known = times.dropna(subset=["step_ms"])
    if known["dim"].nunique() < 2:
        return
    first, last = float(known["dim"].min()), float(known["dim"].max())
    # where each point would be at the largest dim, had it grown as d² or d³ from there: the lowest bounds the guides
    at_last = [known["step_ms"] * (last / known["dim"]) ** order for order in (2, 3)]
    anchor = CLEAR * float(min(values.min() for values in at_last))
    bottom = anchor / GUIDE_SPAN
    for order in (2, 3):
        start = max(first, last * (bottom / anchor) ** (1 / order))
        height = anchor * (start / last) ** order
        ax.plot([start, last], [height, anchor], linestyle="--", **GUIDE | {"color": "0.35"})
        ax.annotate(
            f"d{'²³'[order - 2]}", (start, height), (0, -2), textcoords="offset points", ha="center", va="top",
            color="0.25", fontsize=9,
        )  # fmt: skip
    ax.set_ylim(bottom=min(bottom / 1.8, 0.8 * float(known["step_ms"].min())))


def name_curves(figure: Figure, ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Write each curve's name at its end, apart from each other, and all names with their markers below the figure."""
    handles, labels = ax.get_legend_handles_labels()
    columns = max(1, min(5, LEGEND_WIDTH // max(map(len, labels), default=1)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3)
    known = times.dropna(subset=["step_ms"]).sort_values("dim")
    if not len(known):
        return
    ends = known.groupby("optimizer").tail(1)
    if (engine := figure.get_layout_engine()) is not None:  # or there are no points yet to measure distances in
        engine.execute(figure)
    places = ax.transData.transform(ends[["dim", "step_ms"]]) * 72 / figure.dpi
    ends = ends.assign(left=places[:, 0], height=places[:, 1]).sort_values("left")
    reach = (ends["left"] + OFFSET + LETTER * ends["optimizer"].str.len()).cummax().shift(fill_value=0.0)
    for _, beside in ends.groupby((ends["left"] + OFFSET > reach).cumsum()):  # one begins where another has not ended
        part = beside.sort_values("height")
        ranks = LINE * np.arange(len(part))
        shifts = optimize.isotonic_regression(part["height"] - ranks).x + ranks - part["height"]
        for row, shift in zip(part.to_dict("records"), shifts, strict=True):
            line = {"arrowstyle": "-", "color": look[row["optimizer"]]["color"], "linewidth": 0.6, "shrinkB": 4}
            ax.annotate(
                row["optimizer"], (row["dim"], row["step_ms"]), (OFFSET, shift), textcoords="offset points",
                color="0.15", va="center", fontsize=8.5, annotation_clip=False, arrowprops={"shrinkA": 0, **line},
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip


def _end_caps(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Mark each dim where none of an optimizer's cells was measured, with the status."""
    failed = times[times["ok"] == 0]
    for rank, (name, part) in enumerate(failed.groupby("optimizer")):
        height = 0.97 - 0.05 * (rank % 6)
        style = {**look[str(name)], "marker": "X", "linestyle": "none", "markersize": 6}
        if name not in set(times.loc[times["ok"] > 0, "optimizer"]):
            style["label"] = name
        ax.plot(part["dim"], [height] * len(part), transform=ax.get_xaxis_transform(), clip_on=False, **style)
        first = part.sort_values("dim").iloc[0]
        ax.annotate(
            first["status"].replace("_", " "), (first["dim"], height), (-6, 0), textcoords="offset points",
            xycoords=ax.get_xaxis_transform(), ha="right", va="center", fontsize=7, color=style["color"],
        )  # fmt: skip


def axes_of_dims(ax: Axes, dims: pd.Series, most: int = 9) -> None:
    """Label the dims measured, as many as do not touch, and plain numbers on a logarithmic y axis."""
    ticks: list[int] = []
    for dim in sorted(set(dims), reverse=True):
        if not ticks or ticks[-1] / dim > (dims.max() / dims.min()) ** (1 / most):
            ticks.append(int(dim))
    margin = max(2.0, dims.max() / dims.min()) ** 0.05
    ax.set_xlim(dims.min() / margin, dims.max() * margin)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.tick_params(axis="x", labelrotation=45)
    ax.set_xlabel("dim d")
    if ax.get_yscale() == "log":
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def alt(times: pd.DataFrame, what: str) -> str:
    """Say in a sentence what the figure shows."""
    known = times.dropna(subset=["step_ms"])
    if not len(known):
        return f"Time of one step against dim ({what}): no cell was measured."
    last = known[known["dim"] == known["dim"].max()].sort_values("step_ms")
    told = ", ".join(f"{row['optimizer']} {number(row['step_ms'])} ms" for row in last.to_dict("records"))
    return (
        f"Time of one step against dim on logarithmic axes, with guides for d² and d³; below it peak memory and what"
        f" else is known ({what}). At dim {known['dim'].max()}: {told}."
    )
