"""How fast gradient descent, heavy ball and Nesterov's method converge on a quadratic, beside their closed forms.

Polyak 1964, "Some methods of speeding up the convergence of iteration methods"; Lessard, Recht & Packard 2016, arXiv
1408.3595, section 2.2, for the two-step matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from stepscale.bench.analysis.training.learning_curves import WORKLOAD

SETTINGS = ["condition", "lr", "momentum", "nesterov"]
COLUMNS = [*WORKLOAD, "optimizer", *SETTINGS, "theory", "measured", "off"]
LEAST = 3  # points of a curve's second half that a slope is taken through


def spectral_radius(curvature: float, lr: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the factor a step by which the error along an eigenvector shrinks in the end.

    Of θ₊ = (1 + μ − lr h) θ − μ θ₋ with heavy ball, of (1 − lr h)((1 + μ) θ − μ θ₋) with Nesterov's method: the larger
    modulus of the roots of r² = s r − p.

    Args:
        curvature: h, the eigenvalue.
        lr: the learning rate.
        momentum: μ; 0 for gradient descent.
        nesterov: whether the gradient is taken ahead, as torch's SGD has it.
    """
    shrunk = 1 - lr * curvature
    s, p = ((1 + momentum) * shrunk, momentum * shrunk) if nesterov else (shrunk + momentum, momentum)
    rest = s * s - 4 * p
    return math.sqrt(p) if rest < 0 else (abs(s) + math.sqrt(rest)) / 2


def theory(rule: Mapping[str, float]) -> float:
    """Return −log of the factor a step by which the distance from the optimum shrinks; below 0 it grows.

    Eigenvalues are 1/κ … 1, and the slowest is at one end: the radius has its least value in between.
    """
    ends = (1 / rule["condition"], 1.0)
    slowest = max(spectral_radius(h, rule["lr"], rule["momentum"], nesterov=bool(rule["nesterov"])) for h in ends)
    return -math.log(slowest) if slowest else math.inf


def rates(runs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """One row a workload, optimizer and its settings: −log of the factor a step, of theory and as measured.

    Of final runs of SGD on a quadratic without noise. Measured is half the slope of the loss's logarithm, which is a
    square of the distance, through the second half of the steps; the median over seeds. ``off`` is measured / theory
    − 1.
    """
    rows = []
    chosen = runs[~runs["trial"] & runs["quadratic"].notna() & (runs["status"] == "ok")]
    for run in chosen.to_dict("records"):
        measured = slope(points[points["identity"] == run["identity"]])
        expected = theory(run["quadratic"])
        if math.isfinite(measured) and 0 < expected < math.inf:
            rows.append({**run, **run["quadratic"], "theory": expected, "measured": measured})
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    keys = [*WORKLOAD, "optimizer", *SETTINGS, "theory"]
    found = pd.DataFrame(rows).groupby(keys, sort=False)["measured"].median().reset_index()
    return found.assign(off=found["measured"] / found["theory"] - 1)


def slope(points: pd.DataFrame) -> float:
    """Return half of what log loss falls by a step in the second half of a curve; NaN where too little is known."""
    loss = -points["held_out_nats"].to_numpy(float)
    step = points["step"].to_numpy(float)
    late = (step >= step.max() / 2) & (loss > 0) if len(step) else np.zeros(0, bool)
    if late.sum() < LEAST:
        return math.nan
    return -float(np.polyfit(step[late], np.log(loss[late]), 1)[0]) / 2
