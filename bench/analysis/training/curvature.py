"""How the largest eigenvalue of a batch's Hessian depends on the batch: λ₁(B) = λ₁ + c / B, and what that means.

Granziol, Zohren & Roberts 2020, arXiv 2006.09092; Baik, Ben Arous & Péché 2005 for the threshold: of noise whose
eigenvalues end at 2 s, λ₁ becomes λ₁ + s² / λ₁ where λ₁ > s, and is lost in the noise below. So s² = c λ₁ / B, and an
eigenvalue stands out in batches of more than c / λ₁ rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from stepscale.bench.analysis.training.learning_curves import WORKLOAD
from stepscale.bench.records.schema import Curvature

COLUMNS = [*WORKLOAD, "optimizer", "seed", "identity", "rows", "lambda_1"]


class Fit(NamedTuple):
    """λ₁(B) = ``limit`` + ``noise`` / B."""

    limit: float
    noise: float
    r_squared: float

    @property
    def least_batch(self) -> float:
        """Rows below which noise hides the eigenvalue; 0 where there is none."""
        return max(0.0, self.noise / self.limit) if self.limit > 0 else float("inf")


def eigenvalues(runs: pd.DataFrame, curvatures: Mapping[str, Curvature]) -> pd.DataFrame:
    """One row a run, size and batch that was drawn: ``lambda_1`` of its Hessian; ``curvatures`` are by identity."""
    rows = []
    for run in runs[runs["identity"].isin(curvatures)][COLUMNS[:-2]].to_dict("records"):
        found = curvatures[run["identity"]]
        for size, values in zip(found.batch, found.largest, strict=True):
            rows += [{**run, "rows": size, "lambda_1": value} for value in values]
    return pd.DataFrame(rows, columns=COLUMNS)


def batch_law(own: pd.DataFrame) -> Fit:
    """Fit λ₁(B) = λ₁ + c / B to the means of each size, by least squares, of one run's rows of ``eigenvalues``."""
    means = own.groupby("rows")["lambda_1"].mean()
    sizes, y = means.index.to_numpy(float), means.to_numpy(float)
    X = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    (limit, noise), *_ = np.linalg.lstsq(X, y)
    rest, spread = np.square(y - X @ [limit, noise]).sum(), np.square(y - y.mean()).sum()
    return Fit(float(limit), float(noise), float(1 - rest / spread) if spread else 1.0)
