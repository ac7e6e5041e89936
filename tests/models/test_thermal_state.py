"""Thermal states against matrix logarithms and automatic differentiation, in float64."""

import math
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm, logm
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from stepscale.models import ThermalState
from stepscale.models.quantum.thermal_state import Target, hamiltonian
from stepscale.optimizers import MirrorDescent, QuantumNatural, TemperatureSequence, pair

pytestmark = pytest.mark.numerical
NOTHING = torch.zeros(1, 1)
SLOW = partial(torch.optim.SGD, lr=0.05)
NATURAL = partial(pair, direction=QuantumNatural, update=SLOW)


def state(layers: int = 2, qubits: int = 3, **words: object) -> ThermalState:
    torch.manual_seed(0)
    return ThermalState(layers, qubits, spread=0.4, **words).double()  # type: ignore[arg-type]


def relative_entropy(ρ: np.ndarray, σ: np.ndarray) -> float:
    return float(np.trace(ρ @ (logm(ρ) - logm(σ))).real)


@pytest.mark.parametrize("target", ["ising", "heisenberg"])
def test_loss_is_the_relative_entropy_to_the_thermal_state(target: str) -> None:
    H = hamiltonian(Target(target), 3, 0.7).numpy()
    σ = expm(-1.3 * H) / np.trace(expm(-1.3 * H)).real
    for divergence in ("vqt", "qmhl"):
        model = state(target=target, beta=1.3, field=0.7, divergence=divergence)
        ρ = model.state().detach().numpy()
        wanted = relative_entropy(ρ, σ) if divergence == "vqt" else relative_entropy(σ, ρ)
        assert model.loss(NOTHING).item() == pytest.approx(wanted, abs=1e-10)
    energy = (model.hamiltonian[..., 0] + 1j * model.hamiltonian[..., 1]).numpy()
    assert model.free_energy(torch.from_numpy(energy)).item() == pytest.approx(
        relative_entropy(ρ, σ) - math.log(np.trace(expm(-1.3 * H)).real), abs=1e-10
    )


def test_hamiltonians_are_those_of_small_rings() -> None:
    """Levels of the Ising chain of two, ±√(1 + 4 h²) and ±1 for bonds of one; the Heisenberg pair's −3 and 1."""
    levels = torch.linalg.eigvalsh(hamiltonian(Target.ISING, 2, 0.5))
    assert levels.tolist() == pytest.approx([-math.sqrt(2), -1, 1, math.sqrt(2)])
    assert torch.linalg.eigvalsh(hamiltonian(Target.HEISENBERG, 2, 0.0)).tolist() == pytest.approx([-3, 1, 1, 1])
    H = hamiltonian(Target.ISING, 4, 1.0)
    assert torch.linalg.eigvalsh(H)[0].item() == pytest.approx(-4 / math.sin(math.pi / 8) / 2, abs=1e-12)


def by_vector(model: ThermalState, what: str) -> tuple[Tensor, object]:
    """A function of all parameters as one vector."""
    start = torch.cat([model.energy.detach(), model.circuit.detach().flatten()])

    def value(w: Tensor) -> Tensor:
        parts = {"energy": w[: len(model.energy)], "circuit": w[len(model.energy) :].view_as(model.circuit)}
        for name, part in parts.items():
            del model._parameters[name]
            setattr(model, name, part)
        try:
            found = getattr(model, what)()
        finally:
            for name, part in parts.items():
                delattr(model, name)
                model.register_parameter(name, torch.nn.Parameter(part.detach()))
        return torch.view_as_real(found)

    return start, value


def test_metric_is_that_of_kubo_and_mori_in_three_forms() -> None:
    """−Tr[∂ρ ∂K] by automatic differentiation, the Hessian of D(ρ‖ρ₀), and the sum over eigenvalues of ρ."""
    model = state()
    found = model.metric()
    start, of_state = by_vector(model, "state")
    dρ = torch.view_as_complex(jacobian(of_state, start).movedim(2, -1).contiguous())
    _, of_modular = by_vector(model, "modular")
    dK = torch.view_as_complex(jacobian(of_modular, start).movedim(2, -1).contiguous())
    torch.testing.assert_close(found, -torch.einsum("abj,bak->jk", dρ, dK).real, rtol=1e-12, atol=1e-12)

    K = model.modular().detach()

    def divergence(w: Tensor) -> Tensor:
        _, value = by_vector(model, "state")
        ρ = torch.view_as_complex(value(w))
        levels = torch.linalg.eigvalsh(ρ)
        return (levels * levels.log()).sum() + torch.einsum("ab,ba->", ρ, K).real

    torch.testing.assert_close(found, hessian(divergence, start), rtol=1e-9, atol=1e-9)
    p, V = torch.linalg.eigh(model.state().detach())
    ratio = (p.log()[:, None] - p.log()) / (p[:, None] - p)
    ratio = torch.where(torch.eye(len(p)).bool(), 1 / p, ratio)
    own = torch.einsum("xa,xyj,yb->abj", V.conj(), dρ, V)
    mori = torch.einsum("abj,ab,abk->jk", own.conj(), ratio.to(own.dtype), own).real
    torch.testing.assert_close(found, mori, rtol=1e-12, atol=1e-12)
    p0 = torch.softmax(-model.levels(), 0).detach()
    covariance = torch.cov(model.features.T, aweights=p0, correction=0)
    torch.testing.assert_close(found[:6, :6], covariance, rtol=1e-12, atol=1e-12)


def test_natural_direction_is_the_dense_solve() -> None:
    model = state()
    slopes = torch.autograd.grad(model.loss(NOTHING), [model.energy, model.circuit])
    slope = torch.cat([part.flatten() for part in slopes])
    F = model.metric() + 0.3 * torch.eye(len(slope), dtype=torch.float64)
    QuantumNatural(model, damping=0.3)(NOTHING)
    assert model.energy.grad is not None and model.circuit.grad is not None
    written = torch.cat([model.energy.grad, model.circuit.grad.flatten()])
    torch.testing.assert_close(written, torch.linalg.solve(F, slope), rtol=1e-10, atol=1e-10)


def test_small_mirror_steps_are_natural_ones() -> None:
    """The gap to −η ((1 − c) I + c)⁻¹ ∇ falls with η."""
    gaps = []
    for η in (1e-2, 1e-3):
        model, c = state(layers=1, qubits=2), 0.3  # not a half, at which both shares are the same
        slopes = torch.autograd.grad(model.loss(NOTHING), [model.energy, model.circuit])
        slope = torch.cat([part.flatten() for part in slopes])
        start = torch.cat([model.energy.detach(), model.circuit.detach().flatten()])
        F = (1 - c) * model.metric() + c * torch.eye(len(slope), dtype=torch.float64)
        step = MirrorDescent(model, lr=η, euclidean=c, inner=1500, inner_lr=η / 20)
        step(NOTHING)
        moved = torch.cat([model.energy.detach(), model.circuit.detach().flatten()]) - start
        wanted = -η * torch.linalg.solve(F, slope)
        gaps.append(((moved - wanted).norm() / wanted.norm()).item())
    assert gaps[0] < 0.05 and gaps[1] < 0.3 * gaps[0]


def test_a_mirror_step_s_state_can_be_taken_up_again_after_training_from_it() -> None:
    model, ends = state(layers=1, qubits=2), []
    step = MirrorDescent(model, inner=3)
    step(NOTHING)
    saved = deepcopy((model.state_dict(), step.state_dict()))
    for _ in range(2):
        model.load_state_dict(saved[0])
        step.load_state_dict(saved[1])
        for _ in range(2):
            step(NOTHING)
        ends.append(deepcopy(model))
    assert all(map(torch.equal, *(end.parameters() for end in ends)))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="2 to 8 qubits and beta > 0, got dim=1, qubits=9"):
        ThermalState(1, 9)
    with pytest.raises(ValueError, match="target must be one of ising, heisenberg, got 'xy'"):
        ThermalState(1, target="xy")
    with pytest.raises(TypeError, match="mirror descent is for ThermalState"):
        MirrorDescent(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="inner=0"):
        MirrorDescent(state(), inner=0)
    with pytest.raises(ValueError, match="damping=0"):
        QuantumNatural(state(), damping=0)


def test_another_temperature_is_another_target_of_the_same_parameters() -> None:
    """As a model built for it has: the loss to 1e-12, in either divergence."""
    for divergence in ("vqt", "qmhl"):
        torch.manual_seed(0)
        model = ThermalState(2, 3, beta=0.5, divergence=divergence).double()
        model.set_beta(2.0)
        torch.manual_seed(0)
        other = ThermalState(2, 3, beta=2.0, divergence=divergence).double()
        assert model.loss(NOTHING).item() == pytest.approx(other.loss(NOTHING).item(), abs=1e-12)
    with pytest.raises(ValueError, match=r"beta must be above 0, got beta=0"):
        model.set_beta(0)


@pytest.mark.parametrize("divergence", ["vqt", "qmhl"])
def test_a_saved_state_brings_its_temperature(divergence: str, tmp_path: Path) -> None:
    """Into a model of another, and rounded to float32 as one that was built there."""
    model = state(beta=0.1, divergence=divergence)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = state(beta=2.0, divergence=divergence)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.beta == 0.1 and other.loss(NOTHING) == model.loss(NOTHING)
    single = state(beta=2.0, divergence=divergence).float()
    single.load_state_dict(model.float().state_dict())
    assert single.beta == 0.1 and single.loss(NOTHING) == model.loss(NOTHING)


def test_a_sequence_goes_through_its_temperatures_and_is_taken_up_again() -> None:
    def build() -> tuple[ThermalState, TemperatureSequence]:
        torch.manual_seed(0)
        model = ThermalState(2, 2, beta=1.0).double()
        step = TemperatureSequence(model, NATURAL, betas=[1, 2, 4], interval=2)
        return model, step

    (model, step), seen = build(), []
    begun = deepcopy((model.state_dict(), step.state_dict()))
    for _ in range(3):
        step(NOTHING)
        seen.append(model.beta)
    other, again = build()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(step.state_dict())
    assert other.beta == 2 and other.log_partition == model.log_partition
    for of, one in ((model, step), (other, again)):
        for _ in range(4):
            one(NOTHING)
            seen.append(of.beta)
    assert seen[:7] == [1, 1, 2, 2, 4, 4, 4] and seen[3:7] == seen[7:]
    assert torch.equal(model.energy, other.energy)
    model.load_state_dict(begun[0])
    step.load_state_dict(begun[1])
    assert model.beta == 1 and model.loss(NOTHING) == build()[0].loss(NOTHING)
    with pytest.raises(ValueError, match=r"betas must be some above 0 and interval at least 1, got \[\] and 2"):
        TemperatureSequence(model, NATURAL, betas=[], interval=2)
