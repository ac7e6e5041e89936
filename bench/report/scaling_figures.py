"""Figures of how a step's time grows, drawn from tables on given Axes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from stepscale.bench.report.style import GUIDE, RC, Style

LEGEND_WIDTH = 120  # characters


def scaling_figure(times: pd.DataFrame, slopes: pd.DataFrame, look: dict[str, Style], title: str) -> Figure:
    """Four panels of one group: time, local slope, ratio to the limit, peak memory, against dim.

    Args:
        times: rows of ``scaling.times`` of one group.
        slopes: rows of ``scaling.local_slopes`` of the same group.
        look: ``styles`` of the whole run.
        title: what was measured, where and when.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(10, 7.6), layout="constrained")
        axes = figure.subplots(2, 2)
        draw_times(axes[0, 0], times, look)
        draw_slopes(axes[0, 1], slopes, look, times["dim"])
        draw_ratios(axes[1, 0], times, look)
        draw_memory(axes[1, 1], times, look)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        columns = max(1, min(4, LEGEND_WIDTH // max(map(len, labels), default=1)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(title, fontsize=9)
    return figure


def draw_times(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Step time against dim, log-log, with d² and d³ guides; failed cells as crosses on the upper edge."""
    _draw(ax, times, look, "step_ms", "step_ms_low", "step_ms_high")
    ax.set(xscale="log", yscale="log", ylabel="step, ms (amortised)", title="Time of one step")
    _guides(ax, times)
    _end_caps(ax, times, look)
    _axes(ax, times["dim"])


def draw_ratios(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Step time over the limit's, measured in the same loop."""
    _draw(ax, times, look, "ratio", "ratio_low", "ratio_high")
    ax.axhline(1, **GUIDE)
    ax.annotate("limit", (0.01, 1), xycoords=("axes fraction", "data"), color="0.4", va="bottom", fontsize=8)
    ax.set(xscale="log", yscale="log", ylabel="step / limit", title="Distance from the limit")
    _axes(ax, times["dim"])


def draw_memory(ax: Axes, times: pd.DataFrame, look: dict[str, Style]) -> None:
    """Peak memory of the process that ran the step."""
    _draw(ax, times, look, "peak_mib")
    ax.set(xscale="log", yscale="log", ylabel="peak memory, MiB", title="Peak memory")
    _axes(ax, times["dim"])


def draw_slopes(ax: Axes, slopes: pd.DataFrame, look: dict[str, Style], dims: pd.Series) -> None:
    """Local slope of the step's time between neighbouring ``dims``, with its interval; 2 is quadratic, 3 cubic."""
    for name, part in slopes.groupby("optimizer"):
        style = look[str(name)]
        ax.plot(part["dim"], part["slope"], **style)
        ax.fill_between(part["dim"], part["low"], part["high"], color=style["color"], alpha=0.12, linewidth=0)
    for order in (2, 3):
        ax.axhline(order, linestyle="--", **GUIDE)
    finite = slopes["slope"].dropna()
    top = max(3.5, float(finite.max()) + 0.3) if len(finite) else 3.5
    ax.set(xscale="log", ylim=(min(0.0, float(finite.min()) - 0.2) if len(finite) else 0.0, top))
    ax.set(ylabel="Δ log time / Δ log dim", title="Local slope of the time (2 quadratic, 3 cubic)")
    if not len(slopes):
        ax.text(0.5, 0.3, "no two dims to tell a slope from", transform=ax.transAxes, ha="center", color="0.4")
    _axes(ax, dims)


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
    """Draw d² and d³ through the middle of the plot's lower right, so that slopes can be compared by eye."""
    known = times.dropna(subset=["step_ms"])
    if known["dim"].nunique() < 2:
        return
    dims = np.array([known["dim"].min(), known["dim"].max()], dtype=float)
    anchor = float(known.loc[known["dim"] == known["dim"].max(), "step_ms"].median())
    bottom = float(known["step_ms"].min())
    for order in (2, 3):
        line = anchor * (dims / dims[-1]) ** order
        start = dims[-1] * (max(bottom, line[0]) / anchor) ** (1 / order)  # where it leaves the plot
        ax.plot([start, dims[-1]], [anchor * (start / dims[-1]) ** order, anchor], linestyle="--", **GUIDE)
        ax.annotate(f"d{'²³'[order - 2]}", (start, anchor * (start / dims[-1]) ** order), color="0.4", fontsize=9)


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
        words = f"{first['status'].replace('_', ' ')}  "
        ax.annotate(
            words, (first["dim"], height), xycoords=ax.get_xaxis_transform(), ha="right", va="center", fontsize=7,
            color=style["color"],
        )  # fmt: skip


def _axes(ax: Axes, dims: pd.Series) -> None:
    """Label the dims measured, as many as do not touch, and plain numbers on a logarithmic y axis."""
    ticks: list[int] = []
    for dim in sorted(set(dims), reverse=True):
        if not ticks or ticks[-1] / dim > 1.3:
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
