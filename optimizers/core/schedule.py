"""When factored curvature is updated and inverted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When to do what, and what running averages forget.

    ``statistics`` and ``inverse`` are the numbers of steps between updates of the factors and between inversions (T₃ in
    section 8 of Martens & Grosse 2015), ``decay`` is ε's upper limit in the averages, ε = min(1 − 1/k, decay)
    (section 5): a plain mean at first, so that nothing has to be debiased. Before step ``eager`` inverses are made at
    every update of the factors, too.
    """

    statistics: int = 10
    inverse: int = 10
    decay: float = 0.95
    eager: int = 0

    def __post_init__(self) -> None:
        if self.statistics < 1 or self.inverse < 1 or self.eager < 0 or not 0 <= self.decay < 1:
            raise ValueError(
                "statistics and inverse must be at least 1 step, eager at least 0 and decay in [0, 1), got "
                f"statistics={self.statistics}, inverse={self.inverse}, eager={self.eager}, decay={self.decay}"
            )
