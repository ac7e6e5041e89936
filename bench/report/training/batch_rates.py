"""Learning rates against the batch: the figure and the findings."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepscale.bench.analysis.training import batch_rates
from stepscale.bench.analysis.training.batch_rates import SHARED
from stepscale.bench.report.style import GUIDE, RC, Drawn, Style, Where, plain_numbers, styles, suffix
from stepscale.bench.report.training.study import Study


def study(runs: pd.DataFrame, points: pd.DataFrame, where: Where) -> Study:
    """Of workloads that were tuned at several batches."""
    rates = batch_rates.rates(runs, points)
    return Study(figures(rates, styles(runs["optimizer"]), where), findings(rates), {}, {})


def figures(rates: pd.DataFrame, look: dict[str, Style], where: Where) -> list[Drawn]:
    """Draw learning rates against the batch, ``rates…``, of each workload that was tuned at several."""
    varied, drawn = [axis for axis in SHARED if rates[axis].nunique() > 1], list[Drawn]()
    for key, part in rates.groupby(SHARED):
        facts: dict[str, object] = dict(zip(SHARED, key, strict=True))
        what = "{model}, dim {dim}, depth {depth}, {data}, {dtype}, {device}".format(**facts)
        names = ", ".join(sorted(part["optimizer"].unique()))
        figure = rates_figure(part, look, f"{what}\n{where(str(facts['machine']))}")
        alt = f"The best learning rate against the batch, and the largest stable one ({what}), of {names}."
        drawn.append(Drawn(figure, alt, "rates" + "".join(suffix(axis, facts[axis]) for axis in varied)))
    return drawn


def findings(rates: pd.DataFrame) -> list[str]:
    """Say by which power of the batch each optimizer's rates grow; the rules would have 1 or 1/2."""
    varied, said = [axis for axis in SHARED if rates[axis].nunique() > 1], list[str]()
    for key, part in rates.groupby([*SHARED, "optimizer"], sort=False):
        facts = dict(zip([*SHARED, "optimizer"], key, strict=True))
        (best, blur), (stable, _) = (batch_rates.growth(part, what) for what in ("best", "stable"))
        place = "".join(f", {axis} {facts[axis]}" for axis in varied)
        ends = f"batch {part['batch'].min()} to {part['batch'].max()}"
        edge = " (at an end of what was tried in part: a better one may lie beyond)" if part["best_open"].any() else ""
        largest = " (the largest that were tried in part: it may be more)" if part["stable_open"].any() else ""
        said.append(
            f"`{facts['optimizer']}`{place}: from {ends} the best learning rate grows as B^{best:.2f}{edge}, and the"
            f" largest stable one as B^{stable:.2f}{largest}; the grid's spacing blurs either by {blur:.2f}. Linear"
            " scaling is B^1, root scaling B^0.5."
        )
    return said


def rates_figure(rates: pd.DataFrame, look: dict[str, Style], title: str) -> Figure:
    """The best learning rate against the batch, and the largest stable one; dashed, what grows as B and as its root.

    A hollow marker lies at an end of what was tried: a better or a larger rate may lie beyond.

    Args:
        rates: rows of ``batch_rates.rates`` that differ in batch and optimizer alone.
        look: ``style.styles`` of the whole run.
        title: what was trained on what, where and when.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, what, said in zip(axes, ("best", "stable"), ("best", "largest stable"), strict=True):
            for name, part in rates.sort_values("batch").groupby("optimizer"):
                style = look[str(name)]
                ax.plot(part["batch"], part[what], label=str(name), **style)
                still = part[part[f"{what}_open"]]
                ax.plot(still["batch"], still[what], **{**style, "linestyle": "", "markerfacecolor": "white"})
            _reference_slopes(ax, rates, what)
            ax.set(xscale="log", yscale="log", xlabel="batch", title=f"The {said} learning rate")
            plain_numbers(ax.xaxis)
            plain_numbers(ax.yaxis)
        axes[0].set_ylabel("learning rate")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def _reference_slopes(ax: Axes, rates: pd.DataFrame, what: str) -> None:
    """Draw lines of slopes 1 and 1/2 through the middle of what is shown."""
    ends = np.array([rates["batch"].min(), rates["batch"].max()], dtype=float)
    middle = float(np.exp(np.log(rates[what].astype(float)).mean()))
    for slope, said in ((1.0, "∝ B"), (0.5, "∝ √B")):
        line = middle * (ends / math.sqrt(ends[0] * ends[1])) ** slope
        ax.plot(ends, line, linestyle="--", **GUIDE)
        ax.annotate(said, (ends[1], line[1]), color="0.4", fontsize=7, ha="right", va="bottom")
