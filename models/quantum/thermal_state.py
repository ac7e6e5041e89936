"""A quantum Hamiltonian-based model: an energy model and a circuit, trained to be the thermal state of a target.

Verdon et al. 2019, "Quantum Hamiltonian-based models and the variational quantum thermalizer algorithm", arXiv
1910.02071; circuit and energy as in Sbahi et al. 2022, "Provably efficient variational generative modeling of quantum
many-body systems via quantum-probabilistic information geometry", arXiv 2206.04663. Of n qubits, with D = 2ⁿ:

    ρ = U diag(p) U†,  p = softmax(−E),  E(s) = Σ θ_i s_i + Σ_{i<j} θ_ij s_i s_j of spins s = ±1,  K = U diag(E) U†.

A layer of U is X^a = exp(iπa (1 − X)/2), then Z^b, on every qubit, then CZ^c on the even and the odd neighbours of
an open chain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from enum import StrEnum
from functools import reduce

import torch
from torch import Tensor, nn

from stepscale.models.batch import Batch
from stepscale.models.choices import one_of
from stepscale.models.objective import Objective

MOST_QUBITS = 8  # matrices of 256 × 256


class Target(StrEnum):
    """A Hamiltonian on a ring."""

    ISING = "ising"  # −Σ Z_i Z_{i+1} − field Σ X_i
    HEISENBERG = "heisenberg"  # Σ (X_i X_{i+1} + Y_i Y_{i+1} + Z_i Z_{i+1}) − field Σ Z_i


class Divergence(StrEnum):
    """What is made small."""

    VQT = "vqt"  # D(ρ‖σ): the variational quantum thermalizer, which knows the Hamiltonian
    QMHL = "qmhl"  # D(σ‖ρ): quantum modular Hamiltonian learning, which knows the state


class ThermalState(nn.Module):
    """ρ beside the thermal state σ = exp(−β H)/Z; ``loss`` is their relative entropy in nats, exactly; O(dim D³).

    ``dim`` is the number of layers, so that parameters grow linearly: n (n + 1)/2 of the energy, 3 n − 1 a layer.
    A batch is not looked at: the target is the model's own.

    Args:
        dim: layers of the circuit.
        qubits: n, from 2 to 8.
        target: ``"ising"`` or ``"heisenberg"``.
        beta: inverse temperature.
        field: of the target's Hamiltonian.
        divergence: ``"vqt"``, D(ρ‖σ), or ``"qmhl"``, D(σ‖ρ).
        spread: standard deviation of all parameters at the start.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        qubits: int = 4,
        *,
        target: str = "ising",
        beta: float = 1.0,
        field: float = 1.0,
        divergence: str = "vqt",
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        if dim < 1 or not 2 <= qubits <= MOST_QUBITS or not beta > 0:
            raise ValueError(
                f"a thermal state needs dim ≥ 1, 2 to {MOST_QUBITS} qubits and beta > 0, "
                f"got dim={dim}, qubits={qubits}, beta={beta}"
            )
        self.qubits, self.divergence = qubits, one_of("divergence", Divergence, divergence)
        bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=qubits)))
        spins, places = 1 - 2 * bits, list(itertools.combinations(range(qubits), 2))
        neighbours = [(i, i + 1) for start in (0, 1) for i in range(start, qubits - 1, 2)]
        both = torch.stack([bits[:, i] * bits[:, j] for i, j in neighbours], 1)
        self.features: Tensor
        couplings = torch.stack([spins[:, i] * spins[:, j] for i, j in places], 1)
        self.register_buffer("features", torch.cat([spins, couplings], 1))
        self.diagonals: Tensor  # of what stands in the exponents of Z^b and CZ^c, [D, 2 n − 1]
        self.register_buffer("diagonals", torch.cat([bits, both], 1))
        self.energy = nn.Parameter(spread * torch.randn(self.features.shape[1]))
        self.circuit = nn.Parameter(spread * torch.randn(dim, 3 * qubits - 1))
        self.target, self.field = one_of("target", Target, target), field
        # complex matrices as pairs of real ones, float64 until the model is moved to another type
        none = torch.zeros(0, dtype=torch.float64)
        self.hamiltonian: Tensor
        self.register_buffer("hamiltonian", none, persistent=False)  # β H; of a state, β alone is saved
        self.thermal: Tensor
        self.register_buffer("thermal", none, persistent=False)
        self.set_beta(beta)
        self.objective = Objective("negative relative entropy", of_targets=True)

    def set_beta(self, beta: float) -> None:
        """O(D³): have another thermal state of the same Hamiltonian for a target; the parameters stay.

        Raises:
            ValueError: ``beta`` is not above 0.
        """
        if not beta > 0:
            raise ValueError(f"beta must be above 0, got beta={beta}")
        H = beta * hamiltonian(self.target, self.qubits, self.field)
        levels, vectors = torch.linalg.eigh(H)
        p = torch.softmax(-levels, 0)
        σ = (vectors * p) @ vectors.mH
        self.beta = beta
        self.hamiltonian = torch.view_as_real(H).to(self.hamiltonian)
        self.thermal = torch.view_as_real(σ.contiguous()).to(self.thermal)
        self.log_partition, self.entropy = torch.logsumexp(-levels, 0).item(), -torch.xlogy(p, p).sum().item()

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.beta, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.set_beta(state.item())

    def loss(self, batch: Batch) -> Tensor:
        """O(dim D³): D(ρ‖σ) = β Tr[ρH] − S(ρ) + log Z, or D(σ‖ρ) = Tr[σK] + log Σ exp(−E) − S(σ)."""
        if self.divergence is Divergence.VQT:
            return self.free_energy(self._complex(self.hamiltonian)) + self.log_partition
        U, E = self.unitary(), self.levels()
        seen = self._complex(self.thermal)
        return (E * (U.conj() * (seen @ U)).sum(0).real).sum() + torch.logsumexp(-E, 0) - self.entropy

    def free_energy(self, K: Tensor) -> Tensor:
        """O(dim D³): Tr[ρK] − S(ρ) for a Hermitian K, ``[D, D]``; less its least value it is D(ρ‖exp(−K)/Z)."""
        U, E = self.unitary(), self.levels()
        log_p = -E - torch.logsumexp(-E, 0)
        return (log_p.exp() * (log_p + (U.conj() * (K @ U)).sum(0).real)).sum()

    def levels(self) -> Tensor:
        """E of each state, ``[D]``."""
        return self.features @ self.energy

    def unitary(self) -> Tensor:
        """O(dim D³): U, ``[D, D]``."""
        *_, (_, U) = self._steps()
        return U

    def modular(self) -> Tensor:
        """O(dim D³): K = U diag(E) U†, ``[D, D]``."""
        U = self.unitary()
        return (U * self.levels()) @ U.mH

    def state(self) -> Tensor:
        """O(dim D³): ρ, ``[D, D]``."""
        U = self.unitary()
        return (U * torch.softmax(-self.levels(), 0)) @ U.mH

    @torch.no_grad()
    def metric(self) -> Tensor:
        """O(P D³ + P² D²): the Bogoliubov–Kubo–Mori metric −Tr[∂_j ρ ∂_k K], energies first, ``[P, P]``.

        It is the Hessian matrix of D(ρ‖ρ₀) at ρ₀. The energies' part is their covariance. With A_j = U† ∂_j U the
        circuit's is Σ_ab A^j_ab A^k_ba (p_a − p_b)(E_a − E_b). There is none between the two.
        """
        E = self.levels()
        p = torch.softmax(-E, 0)
        centred = self.features - p @ self.features
        A = torch.stack([U.mH @ (G @ U if G.ndim == 2 else G[:, None] * U) for G, U in self._generators()])
        weight = (p[:, None] - p) * (E[:, None] - E)
        of_circuit = torch.einsum("jab,kba,ab->jk", A, A, weight.to(A.dtype)).real
        return torch.block_diag((centred * p[:, None]).T @ centred, of_circuit)

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """A complex product a layer, forward and for the gradients of both of its factors, as real ones."""
        D = len(self.features)
        return [(2 * D, 2 * D, D)] * (3 * len(self.circuit))

    def _complex(self, pairs: Tensor) -> Tensor:
        return torch.view_as_complex(pairs.to(self.energy.dtype))

    def _steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, of each layer, what is there after X^a, and after all of it, ``[D, D]`` each."""
        n, U = self.qubits, None
        for angles in self.circuit:
            half = math.pi / 2 * angles[:n]
            phase, cos, sin = torch.polar(torch.ones_like(half), half), half.cos(), half.sin()
            diagonal, other = phase * cos, phase * -1j * sin
            gates = torch.stack([torch.stack([diagonal, other], 1), torch.stack([other, diagonal], 1)], 1)
            X = reduce(torch.kron, gates.unbind(0))
            turned = X if U is None else X @ U
            exponent = math.pi * (self.diagonals @ angles[n:])
            U = torch.polar(torch.ones_like(exponent), exponent)[:, None] * turned
            yield turned, U

    def _generators(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield G and U, ∂_j of the circuit being (what follows) G U, in its order; a diagonal G as a vector."""
        n, D = self.qubits, len(self.features)
        index = torch.arange(D, device=self.features.device)
        for turned, U in self._steps():
            one = torch.eye(D, dtype=U.dtype, device=U.device)
            for qubit in range(n):
                yield 1j * math.pi / 2 * (one - one[index ^ (1 << (n - 1 - qubit))]), turned
            for k in range(self.diagonals.shape[1]):
                yield 1j * math.pi * self.diagonals[:, k].to(U.dtype), U


def hamiltonian(target: Target, qubits: int, field: float) -> Tensor:
    """H of a ring, ``[2ⁿ, 2ⁿ]``, complex128; a ring of two has one bond."""
    one = torch.eye(2, dtype=torch.complex128)
    X = torch.tensor([[0, 1], [1, 0]], dtype=torch.complex128)
    Y, Z = torch.tensor([[0, -1j], [1j, 0]], dtype=torch.complex128), torch.diag(one.new_tensor([1, -1]))

    def at(gate: Tensor, *sites: int) -> Tensor:
        return reduce(torch.kron, [gate if site in sites else one for site in range(qubits)])

    bonds = {tuple(sorted((i, (i + 1) % qubits))) for i in range(qubits)}
    if target is Target.ISING:
        found = [-at(Z, *bond) for bond in bonds] + [-field * at(X, i) for i in range(qubits)]
    else:
        found = [at(gate, *bond) for gate in (X, Y, Z) for bond in bonds] + [-field * at(Z, i) for i in range(qubits)]
    return torch.stack(found).sum(0)
