"""Figures of training: likelihood against steps and seconds, performance profiles, what the models look like."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepscale.bench.report.style import GUIDE, RC, WIDTH, Style, plain_numbers, styles

ZOOM = 0.08  # share of the whole gain that the lower panels show
NARROWEST = 7.5  # inches of a figure
GREYS = 32  # levels of a picture: more are not seen in noise, and take most of a report's bytes
WIDE = 140  # letters that a legend's row holds
Arrays = dict[str, np.ndarray]


def curves_figure(points: pd.DataFrame, targets: pd.DataFrame, look: dict[str, Style], title: str, unit: str) -> Figure:
    """Held-out likelihood of one workload against steps and seconds, whole and near its end.

    Args:
        points: rows of ``tables.curves`` of the workload's final runs.
        targets: rows of ``curves.targets`` of the workload.
        look: ``plots.styles`` of the whole run.
        title: what was trained on what, where and when.
        unit: of the likelihoods.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 7.6), layout="constrained")
        axes = figure.subplots(2, 2)
        for column, what in enumerate(("step", "seconds")):
            for row, share in enumerate((1.0, ZOOM)):
                draw_curves(axes[row, column], points, look, what)
                axes[row, column].set_ylabel(f"held-out log-likelihood, {unit}")
                _limits(axes[row, column], points, targets, share)
            axes[0, column].set_title(
                f"Held-out log-likelihood against {'steps' if what == 'step' else 'seconds of steps'}"
            )
        handles, labels = axes[0, 0].get_legend_handles_labels()
        columns = max(1, min(4, WIDE // (8 + max(map(len, labels), default=0))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def draw_curves(ax: Axes, points: pd.DataFrame, look: dict[str, Style], what: str) -> None:
    """Draw every run, finite points only; the first evaluation lies at 0 steps and is left out of the log axis."""
    drawn: set[str] = set()
    for (name, _), run in points.groupby(["optimizer", "identity"]):
        run = run[np.isfinite(run["held_out_nats"]) & (run[what] > 0)].sort_values("step")
        style = {**look[str(name)], "marker": "", "linewidth": 1.1, "alpha": 0.8}
        ax.plot(run[what], run["held_out_nats"], label=None if name in drawn else str(name), **style)
        drawn.add(str(name))
    ax.set(xscale="log", xlabel="steps" if what == "step" else "seconds of steps")
    plain_numbers(ax.xaxis)


def profile_figure(profiles: pd.DataFrame, look: dict[str, Style], workloads: int) -> Figure:
    """Share of workloads and targets reached within a factor of the fastest optimizer's time."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(6.5, 3.8), layout="constrained")
        ax = figure.subplots()
        widest = 1.1 * float(profiles["factor"].max())
        for name, part in profiles.groupby("optimizer"):
            factor = np.concatenate([[1.0], part["factor"], [widest]])
            share = np.concatenate([[0.0], part["share"], [part["share"].max()]])
            ax.step(factor, share, where="post", label=str(name), **{**look[str(name)], "marker": ""})
        ax.set(xscale="log", ylim=(-0.02, 1.02), xlabel="time to target / the fastest optimizer's")
        plain_numbers(ax.xaxis)
        ax.set(ylabel="share of targets reached", title=f"Performance profile over {workloads} workloads and targets")
        ax.legend(frameon=False, fontsize=8)
    return figure


def pictures_figure(shown: dict[str, Arrays], title: str) -> Figure | None:
    """Data beside each optimizer's samples and filters, or density and samples in the plane; None if there are none."""
    if not shown:
        return None
    first = next(iter(shown.values()))
    if "contour" in first:
        return contours_figure(shown, title)
    plane = first["data"].ndim == 2
    kinds = [kind for kind in (("log_density", "samples") if plane else ("samples", "filters")) if kind in first]
    with mpl.rc_context(RC | {"axes.grid": False}):
        width = max(NARROWEST, 1.9 * (1 + len(shown)))  # or the title would not fit
        figure = Figure(figsize=(width, 2.1 * max(1, len(kinds)) + 0.4), layout="constrained")
        axes = figure.subplots(max(1, len(kinds)), 1 + len(shown), squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        _show(axes[0, 0], first, "data")
        axes[0, 0].set_title("data", fontsize=8)
        for column, (name, arrays) in enumerate(shown.items(), 1):
            for row, kind in enumerate(kinds):
                _show(axes[row, column], arrays, kind)
                axes[row, column].set_title(f"{name}\n{kind.removeprefix('log_')}", fontsize=8)
        figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def contours_figure(shown: dict[str, Arrays], title: str) -> Figure:
    """Draws of a distribution, and the Gaussians that approximate it: ellipses of 1 and 2 standard deviations."""
    look, circle = styles(shown), np.linspace(0, 2 * math.pi, 200)
    unit = np.stack([np.cos(circle), np.sin(circle)])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROWEST, 5.2), layout="constrained")
        ax = figure.subplots()
        draws = next(iter(shown.values()))["data"].astype(float)
        ax.scatter(draws[:, 0], draws[:, 1], s=2, color="0.75", rasterized=True, label="the posterior itself, drawn")
        for name, arrays in shown.items():
            mean, covariance = arrays["contour"][0].astype(float), arrays["contour"][1:].astype(float)
            values, vectors = np.linalg.eigh(covariance)
            style = {**look[name], "marker": ""}
            for deviations in (1, 2):
                edge = mean[:, None] + deviations * vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * unit)
                ax.plot(edge[0], edge[1], label=name if deviations == 1 else None, **style)
        ax.set(xlabel="a coefficient of the posterior", ylabel="another")
        ax.legend(frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def _limits(ax: Axes, points: pd.DataFrame, targets: pd.DataFrame, share: float) -> None:
    """Show the top ``share`` of the gain; a run that fell below where it began does not stretch the axis."""
    best, start = float(points["held_out_nats"].max()), float(points.loc[points["step"] == 0, "held_out_nats"].median())
    span = max(best - start, 1e-9)
    ax.set_ylim(best - share * span - 0.02 * share * span, best + 0.05 * share * span)
    for target in targets.to_dict("records"):
        ax.axhline(target["nats"], linestyle="--", **GUIDE)
        if share < 1 and target["nats"] > ax.get_ylim()[0]:
            ax.annotate(
                target["target"], (0.01, target["nats"]), xycoords=("axes fraction", "data"), color="0.4",
                va="bottom", fontsize=7,
            )  # fmt: skip


def _show(ax: Axes, arrays: Arrays, kind: str) -> None:
    values = arrays.get(kind, np.empty(0)).astype(np.float32)
    if not values.size:
        ax.annotate("none", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=8)
    elif kind == "log_density":
        ax.imshow(np.exp(values), origin="lower", extent=tuple(arrays["extent"].astype(float)), cmap="magma")
    elif values.ndim == 2:
        ax.scatter(values[:, 0], values[:, 1], s=0.3, color="#0072B2", rasterized=True)
        reach = float(np.abs(arrays["data"]).max()) * 1.3
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    else:
        grey = mpl.colormaps["gray"].resampled(GREYS)
        ax.imshow(_mosaic(values), cmap=grey, interpolation="none")  # embedded as it is, not at the figure's size


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Lay images ``[n, height, width]`` out in a square, each stretched to its own range, a pixel apart."""
    low, high = (f(images, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    scaled = (images - low) / np.maximum(high - low, 1e-12)
    side, (height, width) = math.isqrt(len(images) - 1) + 1, images.shape[1:]
    sheet = np.ones((side * (height + 1) - 1, side * (width + 1) - 1))
    for k, image in enumerate(scaled):
        top, left = (k // side) * (height + 1), (k % side) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet
