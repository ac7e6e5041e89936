"""Rates of convergence on a quadratic beside their closed forms: the figure, the table and the finding."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stepscale.bench.analysis.baselines import base
from stepscale.bench.analysis.training import quadratic_rates
from stepscale.bench.analysis.training.quadratic_rates import SETTINGS
from stepscale.bench.report.style import GUIDE, RC, Drawn, plain_numbers, styles
from stepscale.bench.report.training.study import Study

ROOM = 1.5  # factor beyond what is shown
METHODS = {"theory": "−log of the factor a step", "measured": "as measured", "off": "measured / theory − 1"}


def study(runs: pd.DataFrame, points: pd.DataFrame) -> Study:
    """Of plain SGD on a quadratic without noise."""
    rates = quadratic_rates.rates(runs, points)
    if not len(rates):
        return Study([], [], {}, {})
    return Study(figures(rates), findings(rates), {"Rates on a quadratic": table(rates)}, {"quadratic.csv": rates})


def figures(rates: pd.DataFrame) -> list[Drawn]:
    """Draw measured rates against theory, ``quadratic``."""
    names = rates["optimizer"].map(base)
    look = styles(names)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.5, 5.2), layout="constrained")
        ax = figure.subplots()
        ends = np.array([rates["theory"].min() / ROOM, rates["theory"].max() * ROOM])
        ax.plot(ends, ends, linestyle="--", **GUIDE)
        for name, part in rates.groupby(names):
            ax.plot(part["theory"], part["measured"], label=str(name), **{**look[str(name)], "linestyle": ""})
        ax.set(xscale="log", yscale="log", xlabel="−log of the factor a step, closed form", ylabel="as measured")
        plain_numbers(ax.xaxis)
        plain_numbers(ax.yaxis)
        conditions = ", ".join(f"{value:g}" for value in sorted(rates["condition"].unique()))
        ax.set_title(f"How fast the error shrinks on a quadratic of condition number {conditions}", fontsize=9)
        ax.legend(frameon=False)
    shown = ", ".join(sorted(names.unique()))
    return [
        Drawn(figure, f"Measured rates of convergence on a quadratic against closed forms, of {shown}.", "quadratic")
    ]


def table(rates: pd.DataFrame) -> pd.DataFrame:
    """Lay out every rate."""
    shown = rates.assign(optimizer=rates["optimizer"].map(base))[["optimizer", *SETTINGS, *METHODS]]
    return shown.rename(columns=METHODS)


def findings(rates: pd.DataFrame) -> list[str]:
    """Say how far measured rates are from theory."""
    worst = rates.iloc[int(rates["off"].abs().to_numpy().argmax())]
    return [
        f"On the quadratic {len(rates)} measured rates of convergence are within {100 * abs(worst['off']):.2g} % of"
        f" their closed forms; the farthest is `{base(worst['optimizer'])}` at condition number {worst['condition']:g}."
    ]
