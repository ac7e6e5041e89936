"""What is averaged: a layer's second moments, one for each side of its gradient ``[dim_out, dim_in (+1)]``.

All are means over samples (Fisher scale); of a sample's several rows, as tokens, A is the mean and G the sum
(``Sharing``; of a convolution: Grosse & Martens 2016, arXiv 1602.01407). Another method takes other moments of the same
two sides, as S Sᵀ and SᵀS of mean gradients S: one more function here that returns ``Moments``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepscale.models import LayerIO
from stepscale.optimizers.core.frames import inputs


@dataclass
class Moments:
    """A layer's running second moments; they are averaged in place."""

    A: Tensor  # of the right side, the inputs', [dim_in (+1)] * 2
    G: Tensor | None = None  # of the left side, the outputs', [dim_out] * 2; None where a method has no such side

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """A and G.

        Raises:
            ValueError: there is no G.
        """
        if self.G is None:
            raise ValueError("these moments are of the inputs' side alone: average those of both sides")
        return self.A, self.G


def of_samples(there: Moments | None, io: LayerIO, relative: bool, keep: float) -> Moments:
    """O(B d²): take E[x̄ x̄ᵀ] and E[g gᵀ], K-FAC's factors, into moments that keep that share of what they were."""
    found = of_inputs(there, io, relative, keep)
    return Moments(found.A, averaged(None if there is None else there.G, io.delta, io.samples, keep))


def of_inputs(there: Moments | None, io: LayerIO, relative: bool, keep: float) -> Moments:
    """O(B d²): take E[x̄ x̄ᵀ] alone."""
    x = inputs(io, relative)
    return Moments(averaged(None if there is None else there.A, x, len(x), keep))


def averaged(moments: Tensor | None, x: Tensor, count: int, keep: float) -> Tensor:
    """O(B d²): keep · moments + (1 − keep) · Σ x xᵀ / count over rows ``[batch, dim]``, in place but for the first."""
    if moments is None:
        return x.T @ x / count
    return moments.addmm_(x.T, x, beta=keep, alpha=(1 - keep) / count)
