"""What may be said of a batch's rows, part by part: shared by ranks, or one part after the other."""

from __future__ import annotations

from torch import nn

from stepscale.models import Batch, CountsTerms, offers, rows_of
from stepscale.optimizers.core.step import Direction
from stepscale.optimizers.exact.explicit_inverse import ExplicitInverse
from stepscale.optimizers.exact.stochastic_trace import StochasticTrace
from stepscale.optimizers.relative.relative import Relative

LINEAR = (Relative, ExplicitInverse, StochasticTrace)  # means over rows, beside every exact gradient


def is_mean(direction: Direction) -> bool:
    """Whether a direction's ``.grad`` is the mean over rows, weighted, of what parts of them give."""
    return direction.facts.exact or isinstance(direction, LINEAR)


def terms_of(model: nn.Module, batch: Batch) -> int:
    """How many terms the loss of a batch is the mean of."""
    return model.loss_terms(batch) if offers(model, CountsTerms) else rows_of(batch)
