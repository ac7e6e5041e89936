"""What a model's ``loss`` is, as the model itself declares it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LogDet(StrEnum):
    """How a step comes by the gradient of the log-determinant; tables show it."""

    EXACT = "exact"
    STALE = "stale"  # as it was some steps ago
    STOCHASTIC = "stochastic"  # unbiased
    BIASED = "biased"
    RESTRICTED = "restricted"  # exact, in a family of weights that leaves some out


@dataclass(frozen=True)
class Objective:
    """What ``loss`` returns the negative mean of, over the rows of a batch.

    Attributes:
        name: of the quantity.
        unit: of the quantity.
        exact: whether it is computed exactly; otherwise it is an estimate or a bound.
        of_targets: whether it is of targets given inputs, not of the rows themselves. Bits per dim and densities of
            rows are then left out.
        log_det: how the model itself comes by its log-determinant's gradient; None leaves it to the direction.
        discrete: whether rows are of finitely many values, so that it is of a probability, not of a density.
        differentiable: whether the gradient of ``loss`` is what trains the model; of some it is an estimate of another
            kind, which ``capture`` returns.
    """

    name: str = "log-likelihood"
    unit: str = "nats"
    exact: bool = True
    of_targets: bool = False
    log_det: LogDet | None = None
    discrete: bool = False
    differentiable: bool = True

    @property
    def of_rows(self) -> bool:
        """Whether it is a log-density of the rows themselves in nats, which depends on their units."""
        return self.unit == "nats" and not self.of_targets and not self.discrete


def objective_of(model: object) -> Objective:
    """Return the model's ``objective`` where it has one of that type, else the default.

    Any other attribute of that name is the user's own: a model needs only ``loss(batch)``.
    """
    found = getattr(model, "objective", None)
    return found if isinstance(found, Objective) else Objective()
