"""The picture of what a step's time is spent on: shares by order of growth against dim, a panel an optimizer."""

from __future__ import annotations

import math
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from stepscale.bench.analysis.cubic_work import CUBIC_ABOVE
from stepscale.bench.report.page import TableRow, number, percent
from stepscale.bench.report.scaling_tables import ONE_DIM, UNLOGGED, UNTIMED, by_clock, lacking
from stepscale.bench.report.style import RC, WIDTH, Style

UNKNOWN, HIGHEST = -1, 4  # orders: one that is not known, and that from which on all are drawn alike
# from the bottom up, each lighter or darker than its neighbours; what is cubic is hatched too, for print and grey
LOOKS: dict[int, Style] = {
    0: {"facecolor": "#e8e8e8", "label": "no growth with d: calls, Python, work outside torch"},
    1: {"facecolor": "#a9cfe8", "label": "work ∝ d"},
    2: {"facecolor": "#2c74b3", "label": "work ∝ d²"},
    UNKNOWN: {"facecolor": "#bbbbbb", "hatch": "----", "label": "unknown order"},
    3: {"facecolor": "#e8743b", "hatch": "////", "label": "work ∝ d³"},
    HIGHEST: {"facecolor": "#8c1a10", "hatch": "xxxx", "label": "work ∝ d⁴ or faster"},
}
LACKING = {
    UNLOGGED: "its operations\ncould not be logged",
    ONE_DIM: "its operations were\nlogged at one dim only",
    UNTIMED: "its operations were\nnot timed one by one",
}
CUBIC, NOT_CUBIC = "#b03a06", "#1b5583"  # of titles
ACROSS, TITLE, NARROW = 4, 36, 26.0  # panels in a row; characters of a title; points between the labels of two dims


def orders_figure(shares: pd.DataFrame, growth: pd.DataFrame, times: pd.DataFrame, title: str) -> Figure:
    """Draw one panel an optimizer of a group, those with most cubic work first; milliseconds stand below each dim.

    Args:
        shares: rows of ``cubic_work.shares`` of one group.
        growth: rows of ``cubic_work.growth`` of the same group.
        times: rows of ``step_times.times`` of the same group; one of which nothing was counted says so.
        title: what was measured, where and when.
    """
    names = by_share(times, growth)
    rows = math.ceil(len(names) / ACROSS)
    with mpl.rc_context(RC | {"axes.grid": False, "hatch.color": "white", "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(WIDTH, 2.45 * rows + 1.2), layout="constrained")
        axes = figure.subplots(rows, min(ACROSS, len(names)), squeeze=False)
        for ax, name in zip(axes.flat, names, strict=False):
            own = growth[growth["optimizer"] == name].to_dict("records")
            draw_panel(ax, name, own[0] if own else {}, shares[shares["optimizer"] == name], times)
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("share of a step's time", fontsize=8.5)
        present = set(shares["order"].clip(upper=HIGHEST))
        handles = [Patch(edgecolor="white", **look) for order, look in LOOKS.items() if order in present]
        figure.legend(
            handles=handles[::-1], loc="outside lower center", ncols=len(handles), frameon=False,
            title=f"titles: at the largest dim; below: dim d (log), ms a step; dotted: {percent(CUBIC_ABOVE)} cubic",
        )  # fmt: skip
        figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def by_share(times: pd.DataFrame, growth: pd.DataFrame) -> list[str]:
    """Return the optimizers, those with most cubic work at their largest dim first."""
    share = growth.set_index("optimizer")["cubic_share"].dropna() if len(growth) else pd.Series(dtype=float)
    return sorted(times["optimizer"].unique(), key=lambda name: (-share.get(name, -1.0), name))


def title_of(name: str) -> str:
    """Shorten a name to the width of a panel: its settings to their last key, and what is still too long."""
    short = re.sub(r"[\w.]+\.(\w+=)", r"\1", name)
    return short if len(short) <= TITLE else f"{short[: TITLE - 1]}…"


def draw_panel(ax: Axes, name: str, growth: TableRow, shares: pd.DataFrame, times: pd.DataFrame) -> None:
    """Stack the shares of one optimizer by order, the fastest growing on top; say why where there are none."""
    verdict = by_clock(growth)
    cubic = verdict.key > 0
    ax.set_title(
        "\n".join([title_of(name), verdict.text]), loc="left", fontsize=8.5,
        color=CUBIC if cubic else NOT_CUBIC if verdict.key == 0 else "0.3", fontweight="bold" if cubic else "normal",
    )  # fmt: skip
    ax.set(ylim=(0, 1), yticks=[0, 0.25, 0.5, 0.75, 1], yticklabels=["0", "25", "50", "75", "100 %"])
    ax.tick_params(labelsize=7.5)
    if not len(shares):
        ax.set(xticks=[])
        ax.text(
            0.5,
            0.5,
            _lacking(name, growth, times),
            transform=ax.transAxes,
            ha="center",
            va="center",
            color="0.3",
            fontsize=8,
        )
        return
    table = shares.assign(order=shares["order"].clip(upper=HIGHEST))
    table = table.pivot_table(index="dim", columns="order", values="share", aggfunc="sum").fillna(0.0)
    if len(table) == 1:  # a bar, and no area
        table = pd.concat([table.set_axis(table.index * stretch) for stretch in (0.8, 1.25)])
    order = [which for which in LOOKS if which in table]
    dims, tops = table.index.to_numpy(dtype=float), np.cumsum(table[order].to_numpy().clip(min=0), axis=1)
    tops /= tops[:, -1:]
    bottom = np.zeros(len(dims))
    for k, which in enumerate(order):
        ax.fill_between(dims, bottom, tops[:, k], edgecolor="white", linewidth=0.6, **LOOKS[which])
        bottom = tops[:, k]
    ax.axhline(1 - CUBIC_ABOVE, color="black", linewidth=0.7, linestyle=":")
    ax.set(xscale="log", xlim=(dims[0], dims[-1]))
    _ticks(ax, sorted(shares["dim"].unique()), times[times["optimizer"] == name].set_index("dim")["step_ms"])


def _lacking(name: str, growth: TableRow, times: pd.DataFrame) -> str:
    own = times[times["optimizer"] == name]
    if not own["ok"].any():
        return ", ".join(sorted(set(own["status"]))).replace("_", " ")
    return LACKING[lacking(growth, times)] if growth else "its cells were disturbed,\nor wait for the host"


def _ticks(ax: Axes, dims: list[int], step_ms: pd.Series) -> None:
    """Label the dims, as many as do not touch, each with the milliseconds of a step."""
    low, high = ax.get_xlim()
    apart = (high / low) ** (NARROW / 150)  # a panel is some 150 points wide
    ticks: list[int] = []
    for dim in reversed(dims):
        if not ticks or ticks[-1] / dim > apart:
            ticks.append(dim)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{dim}\n{number(step_ms[dim])}" for dim in ticks])


def alt(shares: pd.DataFrame, growth: pd.DataFrame, what: str) -> str:
    """Say in a sentence what the picture shows."""
    told = [f"{row['optimizer']}: {by_clock(row).text}" for row in growth.to_dict("records")]
    dims = shares["dim"]
    return (
        f"Stacked shares of a step's time by order of growth, against dim {dims.min()} to {dims.max()}, one panel an"
        f" optimizer ({what}). At the largest dim: {'; '.join(told)}."
    )
