"""The likelihood of a split, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepscale.models import Batch, HasLoss, each, rows_of

ROWS = 8_192  # evaluated at once


@torch.no_grad()
def mean_log_likelihood(exact: HasLoss, batch: Batch) -> float:
    """O(L (n d² + d³)): mean over rows ``[n, dim]`` in nats, by a float64 model."""
    count, parts = rows_of(batch), []
    for first in range(0, count, ROWS):
        part = each(batch, lambda rows: _doubled(rows[first : first + ROWS]))  # noqa: B023 - called at once
        parts.append(-rows_of(part) * exact.loss(part).item())
    return math.fsum(parts) / count


def _doubled(rows: Tensor) -> Tensor:
    return rows.double() if rows.is_floating_point() else rows
