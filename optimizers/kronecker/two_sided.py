"""How curvature is applied: one matrix from the left and one from the right of a gradient that is kept as factors.

A layer's preconditioned gradient is G⁻¹ ∇ A⁻¹ = (g G⁻¹)ᵀ(x̄ A⁻¹)/B − G⁻¹ [N, 0] A⁻¹ (the notation of ``frames``): a part
of rank B that costs O(B d²), and where the loss holds a log-determinant, a part of full rank from it, which no exact
step gets below O(d³). Without one no product between inversions is cubic: for fewer rows than the layer is wide the
factors of rank B are preconditioned first and multiplied last (Martens & Grosse 2015, section 8).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from stepscale.models import LayerIO
from stepscale.optimizers.core.frames import inputs, log_det_gradient, map_back, write
from stepscale.optimizers.core.step import StateDict


@dataclass
class TwoSided:
    """D ↦ G⁻¹ D A⁻¹ for one layer."""

    right: Tensor  # A⁻¹, [dim_in (+1)] * 2
    left: Tensor | None = None  # G⁻¹, [dim_out] * 2; None says G = I
    within: Tensor | None = None  # G⁻¹ [I, 0] A⁻¹, the log-determinant's part within the relative frame
    stale: Tensor | None = None  # the log-determinant's part in the parameters, as it was when this was made

    def keeping_log_det(self, io: LayerIO, relative: bool, stale: bool) -> TwoSided:
        """O(d³) with a log-determinant in the loss: add what later steps need of its part."""
        if not io.log_det:
            return self
        kept = self
        if relative:
            rows = self.right[: io.layer.in_features]
            kept = replace(self, within=rows if self.left is None else self.left @ rows)
        return replace(self, stale=kept.log_det_part(io.layer)) if stale else kept

    def write(self, io: LayerIO, relative: bool, damping: float) -> None:
        """Write G⁻¹ ∇ A⁻¹, mapped back to the parameters, into ``.grad``."""
        x = inputs(io, relative)
        out, width = io.layer.weight.shape
        if not io.log_det and full_is_cheaper(len(x), out, width, sides=1 if self.left is None else 2):
            gradient = (x.T @ io.delta).div_(len(x))
            return write(io.layer, gradient if self.left is None else gradient @ self.left, self.right, None)
        left = io.delta / len(x) if self.left is None else (io.delta @ self.left).div_(len(x))
        right = x @ self.right
        if relative and io.log_det:  # associated from the right, so that mapping it back costs O(B d²)
            right = map_back(right, io.layer)
        return write(io.layer, left, right, self.log_det_part(io.layer) if io.log_det else None)

    def log_det_part(self, layer: nn.Linear) -> Tensor:
        """O(d³), and O(1) where it is stale: G⁻¹ [N, 0] A⁻¹ in the parameters; its bias column is not zero."""
        if self.stale is not None:
            return self.stale
        if self.within is not None:  # made when the inverses are: one product here, not two
            return map_back(self.within, layer)
        part = log_det_gradient(layer) @ self.right[: layer.in_features]
        return part if self.left is None else self.left @ part

    def state_dict(self) -> StateDict:
        return dict(vars(self))

    @classmethod
    def restored(cls, saved: StateDict) -> TwoSided:
        return cls(**saved)


def full_is_cheaper(rows: int, out: int, width: int, sides: int = 2) -> bool:
    """Whether to form a gradient ``[out, width]`` and precondition it rather than its factors of so many rows.

    ``sides`` 1 is the input's alone.
    """
    left = out if sides == 2 else 0
    return out * width * (rows + left + width) < rows * (left * left + width * width + out * width)
