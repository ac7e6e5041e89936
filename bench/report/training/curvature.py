"""The Hessian of trained models: the figures, and what they say of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepscale.bench.analysis.training.curvature import Fit, batch_law, eigenvalues
from stepscale.bench.records.schema import AXES, Curvature, Spectrum
from stepscale.bench.report.style import COLOURS, GUIDE, RC, Drawn, Where, plain_numbers, suffix
from stepscale.bench.report.training.study import Study

SHOWS = 0.85  # R² from which a law is said to show
BINS, LEAST = 120, 1e-6  # of a histogram of eigenvalues; the smallest share that is shown


def study(runs: pd.DataFrame, curvatures: Mapping[str, Curvature], where: Where) -> Study:
    """Of models whose Hessian was looked at."""
    found = eigenvalues(runs, curvatures)
    files = {"curvature.csv": found} if len(found) else {}
    return Study(figures(found, curvatures, where), findings(found), {}, files)


def figures(found: pd.DataFrame, curvatures: Mapping[str, Curvature], where: Where) -> list[Drawn]:
    """Draw, of each run that was looked at, λ₁ against the batch and both densities, ``curvature…``."""
    drawn = []
    for identity, own in found.groupby("identity", sort=False):
        facts = own.iloc[0]
        what = _place(facts, found, "{optimizer}")
        with mpl.rc_context(RC):
            figure = Figure(figsize=(10.5, 4.2), layout="constrained")
            left, right = figure.subplots(1, 2)
            _eigenvalues(left, own, batch_law(own))
            _densities(right, curvatures[str(identity)].spectra)
            figure.suptitle(f"{what}\n{where(facts['machine'])}", fontsize=9, wrap=True)
        alt = f"The largest eigenvalue of the Hessian against the batch that it is of, and the spectrum ({what})."
        drawn.append(Drawn(figure, alt, "curvature" + suffix("", what)))
    return drawn


def _place(facts: pd.Series, found: pd.DataFrame, optimizer: str) -> str:
    """Name a run among those that were looked at."""
    usual = "{model}, {data}, dim {dim}, " + optimizer + ", batch {batch}, seed {seed}"
    others = [axis for axis in AXES if f"{{{axis}}}" not in usual and found[axis].nunique() > 1]
    return ", ".join([usual.format(**facts), *(f"{axis} {facts[axis]}" for axis in others)])


def _eigenvalues(ax: Axes, own: pd.DataFrame, fit: Fit) -> None:
    ax.plot(own["rows"], own["lambda_1"], ".", color=COLOURS[5], label="a random batch")
    means = own.groupby("rows")["lambda_1"].mean()
    ax.plot(means.index, means, "o", color=COLOURS[0], label="mean")
    sizes = np.geomspace(means.index.min(), means.index.max(), 100)
    said = f"{fit.limit:.3g} {fit.noise:+.3g} / B, R² {fit.r_squared:.3f}"
    ax.plot(sizes, fit.limit + fit.noise / sizes, color=COLOURS[1], label=said)
    ax.axhline(fit.limit, linestyle="--", **GUIDE)
    ax.set(xscale="log", xlabel="rows B of the batch", ylabel="largest eigenvalue of its Hessian")
    plain_numbers(ax.xaxis)
    ax.legend(frameon=False)


def _densities(ax: Axes, spectra: list[Spectrum]) -> None:
    ends = [edge for one in spectra for edge in (min(one.values), max(one.values))]
    bins = np.linspace(min(ends), max(ends), BINS)
    for colour, one in zip(COLOURS, spectra, strict=False):
        heights, _ = np.histogram(one.values, bins=bins, weights=one.weights)
        ax.stairs(np.maximum(heights, LEAST), bins, color=colour, label=f"{one.batch} rows")
    ax.set(yscale="log", xlabel="eigenvalue", ylabel="share of all eigenvalues", ylim=(LEAST, 1.5))
    ax.legend(frameon=False)


def findings(found: pd.DataFrame) -> list[str]:
    """Say how far λ₁ + c / B holds, and below which batch noise hides the eigenvalue."""
    said = []
    for _, own in found.groupby("identity", sort=False):
        fit, first = batch_law(own), own.iloc[0]
        place = _place(first, found, "`{optimizer}`")
        tried = f"R² {fit.r_squared:.3f} over batches of {own['rows'].min()} to {own['rows'].max()} rows"
        if fit.r_squared < SHOWS or fit.noise < 0:
            said.append(f"That the Hessian's largest eigenvalue is λ₁ + c / B does not show, {place}: {tried}.")
            continue
        said.append(
            f"The largest eigenvalue of the Hessian of B rows is {fit.limit:.3g} + {fit.noise:.3g} / B, {place}:"
            f" {tried}. By the theory of random matrices it stands out of the noise in batches of more than"
            f" {fit.least_batch:.2g} rows."
        )
    return said
