"""Information geometry of mixed quantum states: the natural gradient, and mirror descent that needs no metric.

Sbahi et al. 2022, arXiv 2206.04663: with I the Bogoliubov–Kubo–Mori metric of ρ, the natural gradient is (I + ε)⁻¹ ∇.
Mirror descent minimises over all parameters Ω, from Ω_j on,

    ⟨∇, Ω⟩ + ((1 − c) D(ρ_Ω‖ρ_Ω_j) + c/2 ‖Ω − Ω_j‖²) / η,

which tends to −η ((1 − c) I + c)⁻¹ ∇ for small η, by gradients of D alone: the target is asked once a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepscale.models import Batch, ThermalState
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.step import Mark, StateDict, Stateless, no_mark
from stepscale.optimizers.core.trained import require_all_trained
from stepscale.optimizers.core.update import load_update


class QuantumNatural(Stateless):
    """(I + ε)⁻¹ ∇ with I the Bogoliubov–Kubo–Mori metric; O(P D³ + P² D² + P³) for P parameters of matrices D × D.

    Args:
        model: a ``ThermalState``.
        damping: ε, above 0: angles may be redundant, and the metric singular.

    Raises:
        ValueError: ``damping`` is not above 0.
        TypeError: the model is no ``ThermalState``, or a parameter is frozen.
    """

    facts = Facts()

    def __init__(self, model: nn.Module, *, damping: float = 0.01) -> None:
        if not damping > 0:
            raise ValueError(f"damping must be positive, got damping={damping}")
        self.model, self.damping = thermal(model, "the mixed-state natural gradient"), damping
        require_all_trained(model, "QuantumNatural")

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> Tensor:
        model = self.model
        require_all_trained(model, "QuantumNatural")
        loss = model.loss(batch)
        slopes = torch.autograd.grad(loss, [model.energy, model.circuit])
        mark("gradient")
        metric = model.metric()
        metric.diagonal().add_(self.damping)
        mark("statistics")
        slope = torch.cat([slope.flatten() for slope in slopes])
        factor, failed = torch.linalg.cholesky_ex(metric)
        if bool(failed) or not bool(torch.isfinite(factor).all()):
            raise FloatingPointError("the metric is not positive definite: raise damping, or lower the rate")
        direction = torch.cholesky_solve(slope[:, None], factor)[:, 0]
        model.energy.grad = direction[: len(model.energy)]
        model.circuit.grad = direction[len(model.energy) :].view_as(model.circuit)
        mark("precondition")
        return loss.detach()


class MirrorDescent:
    """Quantum-probabilistic mirror descent; O(inner) gradients of the model's own divergence a step, O(P) memory.

    Args:
        model: a ``ThermalState``.
        lr: η.
        euclidean: c, share of the Euclidean distance beside the divergence.
        inner: steps of Adam that minimise what a step is; its moments last from step to step.
        inner_lr: their learning rate.

    Raises:
        ValueError: a number is out of its range.
        TypeError: the model is no ``ThermalState``, or a parameter is frozen.
    """

    facts = Facts()

    def __init__(
        self, model: nn.Module, *, lr: float = 0.1, euclidean: float = 0.5, inner: int = 100, inner_lr: float = 2.5e-3
    ) -> None:
        if not lr > 0 or not 0 <= euclidean <= 1 or inner < 1 or not inner_lr > 0:
            given = f"lr={lr}, euclidean={euclidean}, inner={inner}, inner_lr={inner_lr}"
            raise ValueError(f"mirror descent needs lr > 0, 0 ≤ euclidean ≤ 1, inner ≥ 1, inner_lr > 0, got {given}")
        self.model, self.lr, self.euclidean, self.inner = thermal(model, "mirror descent"), lr, euclidean, inner
        require_all_trained(model, "MirrorDescent")
        self.parameters = [self.model.energy, self.model.circuit]
        self.update = torch.optim.Adam(self.parameters, inner_lr)

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        model, c = self.model, self.euclidean
        require_all_trained(model, "MirrorDescent")
        slopes = torch.autograd.grad(model.loss(batch), self.parameters)
        start = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            K = model.modular()
        mark("gradient")
        for _ in range(self.inner):
            self.update.zero_grad()
            moved = [parameter - old for parameter, old in zip(self.parameters, start, strict=True)]
            near = (1 - c) * model.free_energy(K) + c / 2 * sum(move.square().sum() for move in moved)
            along = sum((slope * move).sum() for slope, move in zip(slopes, moved, strict=True))
            (along + near / self.lr).backward()
            self.update.step()
        mark("update")

    def state_dict(self) -> StateDict:
        return {"update": self.update.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        load_update(self.update, state["update"])


def thermal(model: nn.Module, what: str) -> ThermalState:
    """Return the model, or refuse it."""
    if not isinstance(model, ThermalState):
        raise TypeError(f"{what} is for ThermalState (model=thermal_state), got {type(model).__name__}")
    return model
