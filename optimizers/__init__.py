"""How it is trained: one file a method, pure functions of tensors beside a thin class that owns the state."""

from stepscale.optimizers.core.facts import Facts, facts_of
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.step import (
    Direction,
    Iterative,
    LearnsAfterwards,
    Mark,
    Paced,
    Paired,
    Stateless,
    Step,
    Tracked,
    no_mark,
    pair,
    require,
)
from stepscale.optimizers.core.update import Averaged, Closure, Split, StateDict, averaged, parts_of, split
from stepscale.optimizers.distributed.accumulated import Accumulated
from stepscale.optimizers.distributed.data_parallel import DataParallel
from stepscale.optimizers.exact.autodiff import Jacobian, Layerwise
from stepscale.optimizers.exact.explicit_inverse import ExplicitInverse
from stepscale.optimizers.exact.self_normalizing import SelfNormalizing
from stepscale.optimizers.exact.stochastic_trace import StochasticTrace
from stepscale.optimizers.fisher.batch_fisher import NaturalGradient
from stepscale.optimizers.fisher.mfac import MFAC, InverseFisher
from stepscale.optimizers.fisher.unit_natural import EstimatedGradient, UnitNatural
from stepscale.optimizers.hessian.hessian_free import HessianFree
from stepscale.optimizers.hessian.lanczos_newton import LanczosNewton
from stepscale.optimizers.hessian.learned_rates import LearnedRates
from stepscale.optimizers.kronecker.base import Kronecker
from stepscale.optimizers.kronecker.ekfac import EKFAC
from stepscale.optimizers.kronecker.foof import FOOF
from stepscale.optimizers.kronecker.kfac import KFAC
from stepscale.optimizers.kronecker.mini_block import MiniBlock
from stepscale.optimizers.kronecker.shampoo import Shampoo
from stepscale.optimizers.kronecker.tnt import TNT
from stepscale.optimizers.quadratic_model.kfac_step import QuadraticStep
from stepscale.optimizers.quadratic_model.kl_clipped import KLClipped
from stepscale.optimizers.quadratic_model.near_all import NearAll
from stepscale.optimizers.quadratic_model.trust_region import TrustRegion
from stepscale.optimizers.quadratic_model.wake import KLDWRM
from stepscale.optimizers.quasi_newton.kbfgs import KBFGS
from stepscale.optimizers.relative.fused import RelativeSGD
from stepscale.optimizers.relative.relative import Relative
from stepscale.optimizers.updates.nesterov import MomentumSchedule
from stepscale.optimizers.variational.laplace import Laplace
from stepscale.optimizers.variational.mirror import MirrorDescent, QuantumNatural
from stepscale.optimizers.variational.qbvi import QBVI, ScoreGradient
from stepscale.optimizers.variational.temperatures import TemperatureSequence

__all__ = [
    "EKFAC",
    "FOOF",
    "KBFGS",
    "KFAC",
    "KLDWRM",
    "MFAC",
    "QBVI",
    "TNT",
    "Accumulated",
    "Averaged",
    "Closure",
    "DataParallel",
    "Direction",
    "EstimatedGradient",
    "ExplicitInverse",
    "Facts",
    "HessianFree",
    "InverseFisher",
    "Iterative",
    "Jacobian",
    "KLClipped",
    "Kronecker",
    "LanczosNewton",
    "Laplace",
    "Layerwise",
    "LearnedRates",
    "LearnsAfterwards",
    "Mark",
    "MiniBlock",
    "MirrorDescent",
    "MomentumSchedule",
    "NaturalGradient",
    "NearAll",
    "Paced",
    "Paired",
    "QuadraticStep",
    "QuantumNatural",
    "Relative",
    "RelativeSGD",
    "Schedule",
    "ScoreGradient",
    "SelfNormalizing",
    "Shampoo",
    "Split",
    "StateDict",
    "Stateless",
    "Step",
    "StochasticTrace",
    "TemperatureSequence",
    "Tracked",
    "TrustRegion",
    "UnitNatural",
    "averaged",
    "facts_of",
    "no_mark",
    "pair",
    "parts_of",
    "require",
    "split",
]
