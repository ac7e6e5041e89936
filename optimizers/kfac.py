"""K-FAC on an invertible network, where the loss holds a log-determinant and no input may be taken from data.

Martens & Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature", arXiv 1503.05671.
Gradients and curvature are taken in one of two frames, with ȳ = [y, 1] and V = W⁻ᵀ:

* ``relative``: (W, b) → ((I + E) W, (I + E) b + e), where the gradient is [gᵀy/B − I, mean g], the input factor
  E[ȳ ȳᵀ], and a direction [D_E, D_e] maps back to dW = D_E W, db = D_E b + D_e;
* ``euclidean``: (W, b) itself, where the gradient is [gᵀa/B − V, mean g] and the input factor E[ā āᵀ].

Both preconditioned gradients are G⁻¹ ∇ A⁻¹ = (g G⁻¹)ᵀ(x̄ A⁻¹)/B − G⁻¹ [N, 0] A⁻¹, N = I or V: a part of rank B that
costs O(B d²), and a full-rank one from the log-determinant, which no exact step gets below O(d³).

The factors are plain second moments, with no subtraction of the log-determinant's rank-one term vec(V) vec(V)ᵀ: the
Kronecker approximation less that term is generally indefinite.
All statistics are means over samples (Fisher scale). With a bias, x̄ and A are homogeneous, d + 1 wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepscale.models import Batch, LayerIO
from stepscale.optimizers.step import Mark, no_mark, require

FRAMES = ("relative", "euclidean")
STATISTICS = ("model", "data")
LOG_DETS = ("exact", "stale")


@dataclass
class Factors:
    """One layer's curvature: running averages of the two factors and their damped inverses."""

    A: Tensor  # [dim_in (+1), dim_in (+1)]
    G: Tensor  # [dim_out, dim_out]
    A_inv: Tensor
    G_inv: Tensor
    log_det: Tensor  # G⁻¹ [N, 0] A⁻¹; with log_det="stale" mapped back to the parameters: [dim_out, dim_in (+1)]


class KFAC:
    """Kronecker-factored natural gradient. A step O(L B d²), with the log-determinant exact O(L (B d² + d³)).

    Statistics from model samples cost an LU a layer, O(L (B d² + d³)), every ``statistics_interval`` steps; inverses
    O(L d³) every ``inverse_interval`` steps. Memory O(L d²).

    Args:
        model: offers ``capture``, and ``sample`` where statistics come from the model.
        damping: λ, split over the factors by factored Tikhonov with π (section 6.3); 0 for none.
        frame: ``"relative"``, equivariant to invertible mixing of the data even when damped, or ``"euclidean"``.
        statistics: ``"model"``, samples of the model: the true Fisher; or ``"data"``: the empirical Fisher.
        log_det: ``"exact"``, one d³ product a layer and step, or ``"stale"``: the log-determinant's part as it was when
            the inverses were last computed, and no d³ in between.
        statistics_interval: steps between updates of the factors.
        inverse_interval: T, steps between inversions (T₃ in section 8).
        decay: ε's upper limit in the running averages, ε = min(1 − 1/k, decay) (section 5).

    Raises:
        ValueError: an option or a number is out of its range.
        TypeError: the model lacks a method.
        FloatingPointError: the parameters have diverged.
        torch.linalg.LinAlgError: a damped factor is not positive definite; raise ``damping``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float = 0.1,
        frame: str = "relative",
        statistics: str = "model",
        log_det: str = "exact",
        statistics_interval: int = 10,
        inverse_interval: int = 10,
        decay: float = 0.95,
    ) -> None:
        require(model, "capture", "kfac")
        if statistics == "model":
            require(model, "sample", "kfac (statistics=model)")
        choices = {
            "frame": (frame, FRAMES),
            "statistics": (statistics, STATISTICS),
            "log_det": (log_det, LOG_DETS),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if damping < 0 or not 0 <= decay < 1 or statistics_interval < 1 or inverse_interval < 1:
            raise ValueError(
                "damping must be at least 0, decay in [0, 1) and both intervals at least 1, got "
                f"damping={damping}, decay={decay}, statistics_interval={statistics_interval}, "
                f"inverse_interval={inverse_interval}"
            )
        self.model: Any = model
        self.damping, self.decay = damping, decay
        self.relative, self.sampled, self.stale = (
            frame == "relative",
            statistics == "model",
            log_det == "stale",
        )
        self.statistics_interval, self.inverse_interval = statistics_interval, inverse_interval
        self.period = math.lcm(statistics_interval, inverse_interval)
        self.steps, self.updates = 0, 0
        self.factors: list[Factors] = []

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        captured = self.model.capture(batch)
        mark("gradient")
        if self.steps % self.statistics_interval == 0:
            source = self.model.capture(self.model.sample(len(captured[0].y))) if self.sampled else captured
            self._update_factors(source)
            mark("statistics")
        if self.steps % self.inverse_interval == 0:
            for io, factors in zip(captured, self.factors, strict=True):
                self._invert(io.layer, factors)
            mark("inverse")
        for io, factors in zip(captured, self.factors, strict=True):
            self._precondition(io, factors)
        mark("precondition")
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "updates": self.updates,
            "factors": [dict(vars(factors)) for factors in self.factors],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.updates = state["steps"], state["updates"]
        self.factors = [Factors(**factors) for factors in state["factors"]]

    def _update_factors(self, source: list[LayerIO]) -> None:
        self.updates += 1
        keep = min(1 - 1 / self.updates, self.decay)
        fresh = [second_moments(self._input(io), io.delta) for io in source]
        if not self.factors:
            empty = torch.empty(0)
            self.factors = [Factors(A, G, empty, empty, empty) for A, G in fresh]
        for factors, (A, G) in zip(self.factors, fresh, strict=True):
            factors.A, factors.G = torch.lerp(A, factors.A, keep), torch.lerp(G, factors.G, keep)

    def _invert(self, layer: nn.Linear, factors: Factors) -> None:
        factors.A_inv, factors.G_inv = damped_inverses(factors.A, factors.G, self.damping)
        if self.relative:
            factors.log_det = factors.G_inv @ factors.A_inv[: len(factors.G_inv)]
            if self.stale:
                factors.log_det = map_back(factors.log_det, layer)
        elif self.stale:
            factors.log_det = euclidean_log_det(layer, factors)

    def _precondition(self, io: LayerIO, factors: Factors) -> None:
        """Write G⁻¹ ∇ A⁻¹, mapped back to the parameters, into ``.grad``."""
        left = (io.delta @ factors.G_inv).div_(len(io.delta))
        right = self._input(io) @ factors.A_inv
        log_det = factors.log_det
        if self.relative:
            # the rank-B part is associated from the right, so that mapping it back costs O(B d²)
            right = map_back(right, io.layer)
            if not self.stale:
                log_det = map_back(log_det, io.layer)
        elif not self.stale:
            log_det = euclidean_log_det(io.layer, factors)
        direction = (left.T @ right).sub_(log_det)
        width = io.layer.in_features
        io.layer.weight.grad = direction[:, :width].contiguous()
        if io.layer.bias is not None:
            io.layer.bias.grad = direction[:, width].contiguous()

    def _input(self, io: LayerIO) -> Tensor:
        """Return y (relative frame) or a (Euclidean), ``[batch, dim]``, with a one appended where there is a bias."""
        x = io.y if self.relative else io.a
        return x if io.layer.bias is None else torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def second_moments(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """O(B d²): E[x xᵀ] and E[g gᵀ] over the rows of ``[batch, dim]``; ``g`` per sample, without 1/B."""
    return x.T @ x / len(x), g.T @ g / len(g)


def damped_inverses(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """O(d³): (A + π √λ I)⁻¹ and (G + √λ/π I)⁻¹ by Cholesky, π² = (tr A / dim A) / (tr G / dim G).

    Factored Tikhonov damping, Martens & Grosse 2015, section 6.3.

    Raises:
        FloatingPointError: a factor is not finite: the parameters have diverged.
        torch.linalg.LinAlgError: a damped factor is not positive definite.
    """
    pi = (A.diagonal().mean() / G.diagonal().mean()).sqrt()
    root = math.sqrt(damping)
    return _inverse(A, pi * root), _inverse(G, root / pi)


def _inverse(M: Tensor, shift: Tensor) -> Tensor:
    damped = M.clone()
    damped.diagonal().add_(shift)
    try:
        return torch.cholesky_inverse(torch.linalg.cholesky(damped))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if not torch.isfinite(damped).all():
            raise FloatingPointError("a K-FAC factor is not finite: lower the learning rate") from error
        least = torch.linalg.eigvalsh(damped)[0].item()
        error.args = (f"a damped K-FAC factor has the eigenvalue {least:.3g}: raise damping",)
        raise


def map_back(D: Tensor, layer: nn.Linear) -> Tensor:
    """Map rows [D_E, D_e] of the relative frame to the parameters: [D_E W, D_E b + D_e]; O(rows · d²)."""
    W, b = layer.weight, layer.bias
    if b is None:
        return D @ W
    D_E, D_e = D[:, :-1], D[:, -1]
    return torch.cat([D_E @ W, (D_E @ b + D_e).unsqueeze(1)], dim=1)


def euclidean_log_det(layer: nn.Linear, factors: Factors) -> Tensor:
    """O(d³): G⁻¹ [W⁻ᵀ, 0] A⁻¹; its bias column is not zero."""
    V = torch.linalg.inv(layer.weight).T
    return factors.G_inv @ (V @ factors.A_inv[: layer.in_features])
