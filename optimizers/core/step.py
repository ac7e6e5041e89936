"""A step is a direction, which writes ``.grad``, and an update, which is any ``torch.optim.Optimizer``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from stepscale.models import Batch, HasLoss, lacking, offers, one_of
from stepscale.optimizers.core.facts import Facts, facts_of
from stepscale.optimizers.core.update import (
    Closure,
    Scheduler,
    Update,
    explained,
    is_steady,
    load_update,
    needs_closure,
    optimizer_of,
    scheduler_of,
)
from stepscale.optimizers.core.update import StateDict as StateDict

Mark = Callable[[str], None]
"""Called after a phase with its name."""


Part = TypeVar("Part")


def no_mark(phase: str) -> None:
    """Trace nothing."""


class Direction(Protocol):
    """Writes ``.grad`` of every parameter of the model it was built with; returns the loss where it has computed it.

    A wrapper around another direction passes on the other's ``facts``, whole.
    """

    @property
    def facts(self) -> Facts: ...
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> Tensor | None: ...
    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: StateDict) -> None: ...


@runtime_checkable
class Paced(Protocol):
    """A direction that depends on the update's learning rate, which is one for all parameters, as KLD-WRM."""

    def set_learning_rate(self, rate: float) -> None:
        """Take note of the learning rate of the next step."""
        ...


class Step(Protocol):
    """One optimisation step; what a file in ``conf/optimizer/`` builds from a model."""

    @property
    def facts(self) -> Facts: ...
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None: ...
    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, state: StateDict) -> None: ...


@runtime_checkable
class LearnsAfterwards(Protocol):
    """A direction that learns from where the step that it has led to has brought the parameters, as K-BFGS."""

    def after_step(self, batch: Batch, mark: Mark = no_mark) -> None:
        """Look at the step's batch again; called once the parameters have moved."""
        ...


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
class Iterative(Protocol):
    """A step that finds its direction by iterations of its own, as many as it takes."""

    inner_iterations: int  # of all steps so far


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

    Args:
        direction: writes ``.grad``.
        update: moves the parameters.
        period: the update's own, None where it is not known.
        closure: whether the update evaluates again; None where its signature says it.
        loss: of a batch, which a closure returns where the direction does not.

    Raises:
        ValueError: ``period`` is no whole number of at least 1, or ``closure`` is no ``Closure``.
    """

    def __init__(
        self,
        direction: Direction,
        update: torch.optim.Optimizer,
        period: int | None = None,
        *,
        closure: Closure | None = None,
        loss: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        if period is not None and (not isinstance(period, int) or period < 1):
            raise ValueError(f"optimizer.period must be null or a whole number of at least 1, got {period!r}")
        self.direction, self.update, self.loss, facts = direction, update, loss, facts_of(direction)
        self.paced = direction if isinstance(direction, Paced) else None
        self.learning = direction if isinstance(direction, LearnsAfterwards) else None
        self.closure = one_of("closure", Closure, closure) if closure else _closure_of(update)
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        steady = is_steady(update) and self.closure is None
        self.facts = replace(
            facts,
            period=math.lcm(facts.period, period or 1),
            period_known=facts.period_known and (steady or period is not None),
        )
        self.parameters = [p for group in update.param_groups for p in group["params"]]
        # autograd leaves out what the loss does not use, as everywhere in torch
        self.checked = not self.facts.writes_in_place
        self.begun = False

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        if self.closure is not Closure.FIRST:
            self.evaluate(batch, mark)
        if self.begun:
            self.move(batch, mark)
        else:
            with explained(self.update):
                self.move(batch, mark)
            self.begun = True
        if self.scheduler is not None:
            self.scheduler.step()
        self.conclude(batch, mark)

    def conclude(self, batch: Batch, mark: Mark) -> None:
        """End a step whose update is done: a direction that learns from it does so."""
        mark("update")
        if self.learning is not None:
            self.learning.after_step(batch, mark)

    def evaluate(self, batch: Batch, mark: Mark) -> Tensor | None:
        """Have the direction write the gradients at the parameters as they are; return the loss, where it tells."""
        if not self.facts.writes_in_place:
            for parameter in self.parameters:  # zero_grad(set_to_none=True) without its 20 µs of bookkeeping
                parameter.grad = None
        self.tell_rate()
        loss = self.direction(batch, mark)
        self.check_once()
        return loss

    def tell_rate(self) -> None:
        """Tell the direction the learning rate of this step, where it asks for it."""
        if self.paced is not None:
            self.paced.set_learning_rate(self.one_rate(type(self.direction).__name__))

    def one_rate(self, asked_by: str) -> float:
        """Return the update's learning rate.

        Raises:
            ValueError: groups of parameters have rates of their own.
        """
        rates: list[float] = [group["lr"] for group in self.update.param_groups]
        if any(rate != rates[0] for rate in rates[1:]):
            said = ", ".join(f"{rate:g}" for rate in rates)
            raise ValueError(
                f"{asked_by} goes by one learning rate, and groups of parameters have {said}: give them one"
            )
        return rates[0]

    def move(self, batch: Batch, mark: Mark) -> None:
        """Have the update step; each evaluation that it asks for meanwhile costs what it costs."""
        if self.closure is None:
            self.update.step()
            return

        @torch.enable_grad()
        def again() -> Tensor | None:
            mark("update")  # what it has done since the last evaluation
            loss = self.evaluate(batch, mark)
            if loss is None and self.loss is not None:
                with torch.no_grad():
                    loss = self.loss(batch)
                mark("gradient")
            return None if loss is None else loss.detach()

        self.update.step(again)  # type: ignore[arg-type] # torch's closures return numbers

    def check_once(self) -> None:
        """See, after the first direction, that it has written every gradient."""
        if not self.checked:
            require_served(type(self.direction).__name__, (p for p in self.parameters if p.grad is None))
            self.checked = True

    def state_dict(self) -> StateDict:
        state = {"direction": self.direction.state_dict(), "update": self.update.state_dict()}
        return state if self.scheduler is None else state | {"scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.direction.load_state_dict(state["direction"])
        load_update(self.update, state["update"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def _closure_of(update: torch.optim.Optimizer) -> Closure | None:
    return Closure.FIRST if needs_closure(update) else None


def pair(
    model: nn.Module,
    direction: Callable[[nn.Module], Direction],
    update: Update,
    period: int | None = None,
    *,
    closure: Closure | None = None,
    scheduler: Scheduler | None = None,
) -> Paired:
    """Pair any direction with any torch optimizer.

    Args:
        model: what is trained.
        direction: builds the direction from the model.
        update: builds a torch optimizer of the parameters that are trained; of the model, where its first parameter is
            called ``model``.
        period: steps after which the update's work repeats, as of one that renews a preconditioner every 10. Where it
            is None the harness finds it by watching, unless the update is torch's own.
        closure: ``again`` for an update that wants the gradients and a closure that evaluates them anew (SAM),
            ``first`` for one that evaluates everything itself. None takes ``first`` where its signature needs a closure
            (``torch.optim.LBFGS``), else none is passed.
        scheduler: builds a schedule of the update's learning rates, stepped after each of its steps.

    Example:
        >>> from stepscale.models import Flow
        >>> from stepscale.optimizers import Relative
        >>> step = pair(Flow(dim=4), Relative, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        >>> step(torch.randn(100, 4))
        >>> step.facts.log_det
        <LogDet.EXACT: 'exact'>

    Raises:
        ValueError: ``period`` is no whole number of at least 1, or the update refuses the parameters.
        TypeError: the direction has no ``facts``; the update leaves out a parameter; the schedule needs a metric. Or,
            at the first step, the direction leaves out a parameter, or the update needs what it was not given.
    """
    built = direction(model)
    moving = optimizer_of(model, update)
    loss = model.loss if offers(model, HasLoss) else None
    step = Paired(built, moving, period, closure=closure, loss=loss)
    if scheduler is not None:
        step.scheduler = scheduler_of(moving, scheduler)
    return step


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
