"""How curvature is applied: one matrix from the left and one from the right of a gradient that is kept as factors.

A layer's preconditioned gradient is G⁻¹ ∇ A⁻¹ = (g G⁻¹)ᵀ(x̄ A⁻¹)/B − G⁻¹ [N, 0] A⁻¹ (the notation of ``frames``): a part
of rank B that costs O(B d²), and where the loss holds a log-determinant, a part of full rank from it, which no exact
step gets below O(d³). Without one no product between inversions is cubic: for fewer rows than the layer is wide the
factors of rank B are preconditioned first and multiplied last (Martens & Grosse 2015, section 8).

An inverse of low rank multiplies without being formed. In the relative frame, where N = I, no O(d³) is left then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stepscale.models import LayerIO
from stepscale.optimizers.core.frames import inputs, log_det_gradient, map_back, write, write_whole
from stepscale.optimizers.core.low_rank import LowRank, Symmetric, after, before, columns, plain, restored
from stepscale.optimizers.core.step import StateDict


@dataclass
class TwoSided:
    """D ↦ G⁻¹ D A⁻¹ for one layer."""

    right: Symmetric  # A⁻¹, [dim_in (+1)] * 2; where each row of D has its own, [dim_out, …], call ``whole`` alone
    left: Symmetric | None = None  # G⁻¹, [dim_out] * 2; None says G = I
    within: Tensor | None = None  # G⁻¹ [I, 0] A⁻¹, the log-determinant's part within the relative frame, if it is dense
    stale: Tensor | None = None  # the log-determinant's part in the parameters, as it was when this was made

    def keeping_log_det(self, io: LayerIO, relative: bool, stale: bool) -> TwoSided:
        """O(d³), O(k d²) of low rank: with a log-determinant in the loss, add what later steps need of its part."""
        if not io.log_det:
            return self
        kept = self
        if relative and not (isinstance(self.right, LowRank) and isinstance(self.left, LowRank | None)):
            kept = replace(self, within=self._from_left(first_rows(self.right, io.layer.in_features)))
        return replace(self, stale=kept.log_det_part(io.layer, relative)) if stale else kept

    def write(self, io: LayerIO, relative: bool, damping: float, *, log_dets: float = 1.0) -> None:
        """Write G⁻¹ ∇ A⁻¹, mapped back to the parameters, into ``.grad``; the log-determinant counts so many times."""
        x, delta, B = inputs(io, relative), io.delta, io.samples
        out, width = io.layer.weight.shape
        if not io.log_det and full_is_cheaper(len(x), out, width, columns(self.left), columns(self.right)):
            gradient = (x.T @ delta).div_(B)
            left = gradient if self.left is None else after(gradient, self.left)
            if isinstance(self.right, LowRank):
                return write_whole(io.layer, after(left.T, self.right))
            return write(io.layer, left, self.right, None)
        left = delta / B if self.left is None else after(delta, self.left).div_(B)
        right = after(x, self.right)
        if relative and io.log_det:  # associated from the right, so that mapping it back costs O(B d²)
            right = map_back(right, io.layer)
        less = self.log_det_part(io.layer, relative) if io.log_det else None
        return write(io.layer, left, right, less if less is None or log_dets == 1 else less * log_dets)

    def whole(self, D: Tensor) -> Tensor:
        """O(d³), of low rank O(k d²): G⁻¹ D A⁻¹ of a dense D ``[dim_out, dim_in (+1)]`` in the frame."""
        return after(self._from_left(D), self.right)

    def log_det_part_in_frame(self, layer: nn.Linear, relative: bool) -> Tensor:
        """G⁻¹ [N, 0] A⁻¹ in the frame; made with the inverses in the relative one, else O(d³)."""
        if not relative:
            return self._from_left(after(log_det_gradient(layer), self.right))
        return self._from_left(first_rows(self.right, layer.in_features)) if self.within is None else self.within

    def log_det_part(self, layer: nn.Linear, relative: bool) -> Tensor:
        """G⁻¹ [N, 0] A⁻¹ in the parameters; its bias column is not zero.

        O(1) where it is stale, O(k d²) of low rank in the relative frame, else O(d³).
        """
        if self.stale is not None:
            return self.stale
        if self.within is not None:  # made when the inverses are: one product here, not two
            return map_back(self.within, layer)
        if relative and isinstance(self.right, LowRank):
            return self._from_left(mapped_rows(self.right, layer))
        return self.log_det_part_in_frame(layer, relative)

    def state_dict(self) -> StateDict:
        return {**vars(self), "right": plain(self.right), "left": plain(self.left)}

    @classmethod
    def restored(cls, saved: StateDict) -> TwoSided:
        return cls(**{**saved, "right": restored(saved["right"]), "left": restored(saved["left"])})

    def _from_left(self, D: Tensor) -> Tensor:
        return D if self.left is None else before(self.left, D)


def first_rows(M: Symmetric, rows: int) -> Tensor:
    """O(k d²) at most: so many rows of it."""
    return (M if isinstance(M, Tensor) else M.dense())[:rows]


def mapped_rows(M: LowRank, layer: nn.Linear) -> Tensor:
    """O(k d²): [I, 0] M of the relative frame, mapped back to the parameters of a layer."""
    W, b = layer.weight, layer.bias
    identity = W if b is None else torch.cat([W, b.unsqueeze(1)], dim=1)
    return torch.addmm(identity, M.U[: len(W)] * -M.s, map_back(M.U.T, layer)).div_(M.shift)


def full_is_cheaper(rows: int, out: int, width: int, left: int, right: int) -> bool:
    """Whether to form a gradient ``[out, width]`` and precondition it rather than its factors of so many rows.

    ``left`` and ``right`` are how many products each number costs that they multiply.
    """
    return out * width * (rows + left + right) < rows * (out * left + width * right + out * width)
