"""Dampings against rates and batches: the figure and the findings."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stepscale.bench.analysis.training import dampings
from stepscale.bench.analysis.training.batch_rates import SHARED
from stepscale.bench.report.style import COLOURS, GUIDE, MARKERS, RC, Drawn, Style, Where, plain_numbers, suffix
from stepscale.bench.report.training.study import Study


def study(runs: pd.DataFrame, points: pd.DataFrame, where: Where) -> Study:
    """Of optimizers whose rate and damping were tuned together, at several batches."""
    found = dampings.dampings(runs, points)
    return Study(figures(found, where), findings(found), {}, {"dampings.csv": found} if len(found) else {})


def figures(found: pd.DataFrame, where: Where) -> list[Drawn]:
    """Draw the best damping against the batch, ``dampings…``, of each workload and optimizer."""
    varied, drawn = _varied(found), list[Drawn]()
    for key, part in found.groupby([*SHARED, "optimizer"]):
        facts: dict[str, object] = dict(zip([*SHARED, "optimizer"], key, strict=True))
        what = "{optimizer}, {model}, dim {dim}, depth {depth}, {data}, {dtype}, {device}".format(**facts)
        figure = dampings_figure(part, f"{what}\n{where(str(facts['machine']))}")
        alt = f"The best damping against the batch, a line for each learning rate ({what})."
        drawn.append(Drawn(figure, alt, "dampings" + "".join(suffix(axis, facts[axis]) for axis in varied)))
    return drawn


def findings(found: pd.DataFrame) -> list[str]:
    """Say by which powers of rate and batch each optimizer's best damping grows; a rule would have 1 and −1."""
    varied, said = [axis for axis in _varied(found) if axis != "optimizer"], list[str]()
    for key, part in found.groupby([*SHARED, "optimizer"], sort=False):
        facts = dict(zip([*SHARED, "optimizer"], key, strict=True))
        place = "".join(f", {axis} {facts[axis]}" for axis in varied)
        grown = dampings.growth(part)
        within = f"at {grown.pairs} of {len(part)} pairs of rate and batch the best lies within what was tried"
        ends = f"`{facts['optimizer']}`{place}: from batch {part['batch'].min()} to {part['batch'].max()}"
        if math.isnan(grown.rate):
            said.append(f"{ends} it is not told how the best damping grows: {within}.")
            continue
        said.append(
            f"{ends} the best damping grows as lr^{grown.rate:.2f} B^{grown.batch:.2f}; the grid's spacing blurs these"
            f" by {grown.rate_blur:.2f} and {grown.batch_blur:.2f}, and {within}. Damping ∝ lr / B is lr^1 B^-1."
        )
    return said


def _varied(found: pd.DataFrame) -> list[str]:
    return [axis for axis in [*SHARED, "optimizer"] if found[axis].nunique() > 1]


def dampings_figure(found: pd.DataFrame, title: str) -> Figure:
    """The best damping against the batch, a line for each learning rate; dashed, what falls as 1 / B.

    A hollow marker lies at an end of what was tried: a better one may lie beyond.

    Args:
        found: rows of ``dampings.dampings`` of one workload and optimizer.
        title: what was trained on what, where and when.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6.5, 4.2), layout="constrained")
        ax = figure.subplots()
        for rank, (rate, part) in enumerate(found.sort_values("batch").groupby("rate")):
            look: Style = {"color": COLOURS[rank % len(COLOURS)], "marker": MARKERS[rank % len(MARKERS)]}
            ax.plot(part["batch"], part["damping"], label=f"{rate:.3g}", linewidth=1.3, **look)
            still = part[part["open"].astype(bool)]
            ax.plot(still["batch"], still["damping"], linestyle="", markerfacecolor="white", **look)
        ends = np.array([found["batch"].min(), found["batch"].max()], dtype=float)
        middle = float(np.exp(np.log(found["damping"].astype(float)).mean()))
        line = middle * math.sqrt(ends[0] * ends[1]) / ends
        ax.plot(ends, line, linestyle="--", **GUIDE)
        ax.annotate("∝ 1 / B", (ends[1], line[1]), color="0.4", fontsize=7, ha="right", va="top")
        ax.set(xscale="log", yscale="log", xlabel="batch", ylabel="best damping")
        ax.set_xticks(sorted(found["batch"].unique()))
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        plain_numbers(ax.yaxis)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        figure.legend(loc="outside lower center", ncols=6, frameon=False, title="learning rate")
        figure.suptitle(title, fontsize=9, wrap=True)
    return figure
