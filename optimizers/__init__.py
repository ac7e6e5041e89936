"""How it is trained: one file a method, pure functions of tensors beside a thin class that owns the state."""

from stepscale.optimizers.exact import Jacobian, Layerwise
from stepscale.optimizers.kfac import KFAC
from stepscale.optimizers.relative import Relative
from stepscale.optimizers.relative_sgd import RelativeSGD
from stepscale.optimizers.step import Direction, Mark, Paired, Stateless, Step, Tracked, no_mark, pair, require

__all__ = [
    "KFAC",
    "Direction",
    "Jacobian",
    "Layerwise",
    "Mark",
    "Paired",
    "Relative",
    "RelativeSGD",
    "Stateless",
    "Step",
    "Tracked",
    "no_mark",
    "pair",
    "require",
]
