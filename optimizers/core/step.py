"""A step is a direction, which writes ``.grad``, and an update, which is any ``torch.optim.Optimizer``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from stepscale.models import Batch, lacking
from stepscale.optimizers.core.facts import Facts, facts_of
from stepscale.optimizers.core.trained import trainable

Mark = Callable[[str], None]
"""Called after a phase with its name."""


StateDict: TypeAlias = dict[str, Any]
"""Numbers, tensors, and lists and dicts of them, as torch's own."""


Part = TypeVar("Part")


def no_mark(phase: str) -> None:
    """Trace nothing."""


class Direction(Protocol):
    """Writes ``.grad`` of every parameter of the model it was built with; returns nothing.

    A wrapper around another direction passes on the other's ``facts``, whole.
    """

    @property
    def facts(self) -> Facts: ...
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None: ...
    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: StateDict) -> None: ...


class Step(Protocol):
    """One optimisation step; what a file in ``conf/optimizer/`` builds from a model."""

    @property
    def facts(self) -> Facts: ...
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None: ...
    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: StateDict) -> None: ...


@runtime_checkable
class Tracked(Protocol):
    """A step on which the log-likelihood stays known, and which may halve its learning rate to stay within bounds."""

    halved: int

    def log_likelihood(self) -> Tensor:
        """Mean log-likelihood of the last batch in nats under the parameters that the step found."""
        ...

    def anchor(self) -> float | None:
        """Compute afresh what is tracked; return by how many nats it had drifted, None where nothing is."""
        ...


@runtime_checkable
class Averaged(Protocol):
    """An update that trains at other parameters than it is judged at, as a schedule-free one; it begins in training."""

    def train(self) -> None:
        """Bring the model to the parameters at which gradients are to be taken."""
        ...

    def eval(self) -> None:
        """Bring the model to the parameters by which it is to be judged."""
        ...


class Stateless:
    """What a direction that remembers nothing has for a state."""

    facts = Facts()

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Accept the empty state, and no other."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got one with {', '.join(state)}")


class Paired:
    """The step of a direction and an update.

    Raises:
        ValueError: ``period``, the update's own, is no whole number of at least 1.
    """

    def __init__(self, direction: Direction, update: torch.optim.Optimizer, period: int | None = None) -> None:
        if period is not None and (not isinstance(period, int) or period < 1):
            raise ValueError(f"optimizer.period must be null or a whole number of at least 1, got {period!r}")
        self.direction, self.update, facts = direction, update, facts_of(direction)
        # torch's own do the same work in every step, but for RAdam, which rectifies from the sixth on
        steady = type(update).__module__.startswith("torch.optim.") and not isinstance(update, torch.optim.RAdam)
        self.facts = replace(
            facts,
            period=math.lcm(facts.period, period or 1),
            period_known=facts.period_known and (steady or period is not None),
        )
        self.parameters = [p for group in update.param_groups for p in group["params"]]
        # autograd leaves out what the loss does not use, as everywhere in torch
        self.checked = not self.facts.writes_in_place

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        if not self.facts.writes_in_place:
            for parameter in self.parameters:  # zero_grad(set_to_none=True) without its 20 µs of bookkeeping
                parameter.grad = None
        self.direction(batch, mark)
        self.check_once()
        self.update.step()
        mark("update")

    def check_once(self) -> None:
        """See, after the first direction, that it has written every gradient."""
        if not self.checked:
            require_served(type(self.direction).__name__, (p for p in self.parameters if p.grad is None))
            self.checked = True

    def state_dict(self) -> StateDict:
        return {"direction": self.direction.state_dict(), "update": self.update.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.direction.load_state_dict(state["direction"])
        load_update(self.update, state["update"])


def pair(
    model: nn.Module,
    direction: Callable[[nn.Module], Direction],
    update: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    period: int | None = None,
) -> Paired:
    """Pair any direction with any torch optimizer.

    ``period`` is the number of steps after which the update's work repeats, as of one that renews a preconditioner
    every 10. Where it is None the harness finds it by watching, unless the update is torch's own.

    Example:
        >>> from stepscale.models import Flow
        >>> from stepscale.optimizers import Relative
        >>> step = pair(Flow(dim=4), Relative, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        >>> step(torch.randn(100, 4))
        >>> step.facts.log_det
        <LogDet.EXACT: 'exact'>

    Raises:
        ValueError: ``period`` is no whole number of at least 1.
        TypeError: the direction has no ``facts``. Or the update's ``step`` needs a closure (``torch.optim.LBFGS``): a
            direction evaluates no loss. Or, at the first step, the direction leaves out a parameter.
    """
    return Paired(direction(model), optimizer_of(model, update), period)


def load_update(update: torch.optim.Optimizer, state: StateDict) -> None:
    """Take up an update's state, each tensor in the type it was saved in.

    ``torch.optim.Optimizer.load_state_dict`` casts it to the parameter's: float32 masters and momenta of bfloat16
    weights would be rounded, and counters made fractions. A wrapper's state of another form is its own affair.
    """
    update.load_state_dict(state)
    saved = state.get("state", {})
    for group, named in zip(update.param_groups, state.get("param_groups", []), strict=False):
        for parameter, key in zip(group["params"], named["params"], strict=True):
            if key in saved and parameter in update.state:
                update.state[parameter] = _as_saved(update.state[parameter], saved[key])


def _as_saved(loaded: Any, saved: Any) -> Any:
    """Return what was loaded, but tensors of another type than the saved ones' as they were saved."""
    if isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, dict):
        return {name: _as_saved(part, saved[name]) if name in saved else part for name, part in loaded.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_as_saved(*parts) for parts in zip(loaded, saved, strict=True))
    return loaded


def optimizer_of(
    model: nn.Module, update: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Build a torch optimizer of what is trained of a model; one that is ``Averaged`` is told that training begins.

    Raises:
        TypeError: its ``step`` needs a closure, or all parameters are frozen.
    """
    optimizer = update(trainable(model))
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{type(optimizer).__name__}.step needs a closure that evaluates the loss again; "
            "an update may use .grad alone"
        )
    if isinstance(optimizer, Averaged):
        optimizer.train()
    return optimizer


def require_served(what: str, left: Iterable[Tensor]) -> None:
    """Raise a ``TypeError`` where a direction has left out parameters that are to be trained."""
    if shapes := [tuple(parameter.shape) for parameter in left if parameter.requires_grad]:
        raise TypeError(
            f"{what} serves the layers that the model's capture() returns, which left out parameters of shapes "
            f"{', '.join(map(str, shapes))}: have them captured, freeze them, or use the layerwise direction"
        )


def require(model: nn.Module, part: type[Part], direction: str) -> Part:
    """Return the model as one that offers a part of ``stepscale.models.Model``.

    Raises:
        TypeError: it lacks a method, which the message names.
    """
    if missing := lacking(model, part):
        method = missing[0]
        other = "" if method == "loss" else ", or use the layerwise direction, which needs loss() alone"
        raise TypeError(
            f"the {direction} direction needs {type(model).__name__}.{method}(), which it does not have; "
            f"see stepscale.models.Model{other}"
        )
    return cast(Part, model)
