"""How it is trained: one file a method, pure functions of tensors beside a thin class that owns the state."""

from stepscale.optimizers.ekfac import EKFAC
from stepscale.optimizers.exact import Jacobian, Layerwise
from stepscale.optimizers.facts import Facts, facts_of
from stepscale.optimizers.foof import FOOF
from stepscale.optimizers.inverse import ExplicitInverse, SelfNormalizing, StochasticTrace
from stepscale.optimizers.kfac import KFAC
from stepscale.optimizers.kronecker import Kronecker, Schedule
from stepscale.optimizers.natural import NaturalGradient
from stepscale.optimizers.quadratic import KLClipped, QuadraticStep
from stepscale.optimizers.relative import Relative
from stepscale.optimizers.relative_sgd import RelativeSGD
from stepscale.optimizers.step import (
    Direction,
    Mark,
    Paired,
    StateDict,
    Stateless,
    Step,
    Tracked,
    no_mark,
    pair,
    require,
)

__all__ = [
    "EKFAC",
    "FOOF",
    "KFAC",
    "Direction",
    "ExplicitInverse",
    "Facts",
    "Jacobian",
    "KLClipped",
    "Kronecker",
    "Layerwise",
    "Mark",
    "NaturalGradient",
    "Paired",
    "QuadraticStep",
    "Relative",
    "RelativeSGD",
    "Schedule",
    "SelfNormalizing",
    "StateDict",
    "Stateless",
    "Step",
    "StochasticTrace",
    "Tracked",
    "facts_of",
    "no_mark",
    "pair",
    "require",
]
