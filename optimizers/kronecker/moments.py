"""What is averaged: a layer's second moments, one for each side of its gradient ``[dim_out, dim_in (+1)]``.

K-FAC's are means over samples (Fisher scale); of a sample's several rows, as tokens, A is the mean and G the sum
(``Sharing``; of a convolution: Grosse & Martens 2016, arXiv 1602.01407). TNT, Shampoo and mini-block Fisher take S Sᵀ
and SᵀS of a batch's mean gradient S, which has at most as high a rank as there are rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stepscale.models import LayerIO
from stepscale.optimizers.core.frames import aligned, inputs, log_det_gradient


@dataclass
class Moments:
    """A layer's running second moments; they are averaged in place."""

    A: Tensor  # of the right side, the inputs', [dim_in (+1)] * 2; or [dim_out, dim_in (+1), …], for each output apart
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
    inputs_side = of_inputs(there, io, relative, keep).A
    G = None if there is None else there.G
    return Moments(inputs_side, averaged(G, io.delta, io.delta, keep, (1 - keep) / io.samples))


def of_inputs(there: Moments | None, io: LayerIO, relative: bool, keep: float) -> Moments:
    """O(B d²): take E[x̄ x̄ᵀ] alone."""
    x = inputs(io, relative)
    return Moments(averaged(None if there is None else there.A, x, x, keep, (1 - keep) / len(x)))


def averaged(moments: Tensor | None, left: Tensor, right: Tensor, keep: float, weight: float) -> Tensor:
    """O(B d²): keep · moments + weight · leftᵀ right of rows ``[batch, dim]``, in one pass over the moments, in place.

    Where there are none yet, it is a new matrix.
    """
    if moments is None:
        return aligned(left.T @ right).mul_(weight)
    return moments.addmm_(left.T, right, beta=keep, alpha=weight)


def of_squares(
    there: Moments | None,
    io: LayerIO,
    relative: bool,
    keep: float,
    weight: float,
    *,
    both: bool = True,
    dense: bool = False,
) -> Moments:
    """Take SᵀS and S Sᵀ of the mean gradient S = gᵀx̄/B − [N, 0], or SᵀS alone, times ``weight``, into averages.

    Of n rows fewer than about 0.6 d it is O(n² d + n d²), by Gram matrices of rows; else, or where it is to be
    ``dense``, S is formed, O(d³). The Euclidean frame's N is O(d³) in either case.
    """
    A, G = (None, None) if there is None else (there.A, there.G)
    x, g, B, d = inputs(io, relative), io.delta, io.samples, io.layer.in_features
    if dense or not rows_are_cheaper(len(x), g.shape[1], x.shape[1]):
        S = mean_gradient(io, relative)
        return Moments(averaged(A, S, S, keep, weight), averaged(G, S.T, S.T, keep, weight) if both else None)
    A = averaged(A, x, (g @ g.T) @ x, keep, weight / B**2)
    G = averaged(G, g, (x @ x.T) @ g, keep, weight / B**2) if both else None
    if io.log_det:
        N = None if relative else log_det_gradient(io.layer)  # else it is I
        _take_away(A, x.T @ (g if N is None else g @ N) / B, None if N is None else N.T, weight)
        if G is not None:
            a = x[:, :d]
            _take_away(G, g.T @ (a if N is None else a @ N.T) / B, N, weight)
    return Moments(A, G)


def of_rows(there: Moments | None, S: Tensor, keep: float) -> Moments:
    """O(d³): take s sᵀ of each row s of S, ``[dim_out, dim_in (+1)]``, into a block of its own."""
    A = S.new_zeros(*S.shape, S.shape[1]) if there is None else there.A
    return Moments(A.baddbmm_(S.unsqueeze(2), S.unsqueeze(1), beta=keep, alpha=1 - keep))


def _take_away(square: Tensor, cross: Tensor, N: Tensor | None, weight: float) -> None:
    """Make a square of gᵀx̄/B that of gᵀx̄/B − [N, 0], by their product; N is I where there is none. In place."""
    columns = cross.shape[1]
    square[:, :columns].sub_(cross, alpha=weight)
    square[:columns].sub_(cross.T, alpha=weight)
    if N is None:
        square.diagonal()[:columns].add_(weight)
    else:
        square[:columns, :columns].addmm_(N, N.T, alpha=weight)


def mean_gradient(io: LayerIO, relative: bool) -> Tensor:
    """O(B d²): S, ``[dim_out, dim_in (+1)]``; with a log-determinant in the Euclidean frame O(d³)."""
    S = io.delta.T @ inputs(io, relative) / io.samples
    if io.log_det and relative:
        S.diagonal().sub_(1)
    elif io.log_det:
        S[:, : io.layer.in_features].sub_(log_det_gradient(io.layer))
    return S


def rows_are_cheaper(rows: int, out: int, width: int) -> bool:
    """Whether Gram matrices of so many rows are less work than to form the gradient ``[out, width]`` and square it."""
    by_rows = 4 * rows**2 * (out + width) + 2 * rows * (out**2 + width**2)
    return by_rows < 2 * out * width * (rows + out + width)
