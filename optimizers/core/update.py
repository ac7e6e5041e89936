"""What moves the parameters: any ``torch.optim.Optimizer``, whether it asks for gradients, a closure or the model.

``optimizer_of`` builds one, ``split`` joins two, ``load_update`` restores one bit for bit.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from copy import deepcopy
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stepscale.optimizers.core.trained import trainable

StateDict: TypeAlias = dict[str, Any]
"""Numbers, tensors, and lists and dicts of them, as torch's own."""


Update = Callable[..., torch.optim.Optimizer]
"""Builds a torch optimizer: of the model, where its first parameter is called ``model``, else of the parameters."""


Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
"""Builds a schedule of learning rates of a torch optimizer."""


@runtime_checkable
class Averaged(Protocol):
    """An update that trains at other parameters than it is judged at, as a schedule-free one; it begins in training."""

    def train(self) -> None:
        """Bring the model to the parameters at which gradients are to be taken."""
        ...

    def eval(self) -> None:
        """Bring the model to the parameters by which it is to be judged."""
        ...


class Closure(StrEnum):
    """Which evaluations of an update's step are its closure's: all from the first on, or those after the first."""

    FIRST = "first"
    AGAIN = "again"


class Split(torch.optim.Optimizer):
    """Several updates that step one after the other, each with its own parameters; made by ``split``.

    Its ``param_groups`` are theirs, so that a schedule of learning rates reaches them all.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__(self._groups(), {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def train(self) -> None:
        for part in averaged(self):
            part.train()

    def eval(self) -> None:
        for part in averaged(self):
            part.eval()

    def state_dict(self) -> StateDict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: StateDict) -> None:
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            load_update(part, saved)
        self.param_groups = self._groups()  # they have new ones

    def __getstate__(self) -> StateDict:  # torch's leaves out what is no optimizer's, of copies too
        return super().__getstate__() | {"parts": self.parts}

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]


def split(model: nn.Module, *, matrices: Update, rest: Update, kept_out: Sequence[str] = ()) -> Split:
    """Give the matrices to one update, and the rest to another: biases, norms, filters of convolutions.

    Args:
        model: whose trained parameters are split.
        matrices: builds the update of the parameters of two dimensions.
        rest: builds that of all others. It is left out where there are none.
        kept_out: patterns of the names of matrices that go to the rest, as the shell has them: ``*embedding*``.

    Example:
        >>> from functools import partial
        >>> update = partial(split, matrices=partial(torch.optim.SGD, lr=0.1), rest=partial(torch.optim.AdamW, lr=1e-3))
        >>> [len(group["params"]) for group in update(nn.Linear(3, 2)).param_groups]
        [1, 1]

    Raises:
        ValueError: a pattern fits no matrix, or no matrix is left.
        TypeError: an update needs a closure or the model.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    named = {name: parameter for name, parameter in trained if parameter.ndim == 2}
    for pattern in kept_out:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(f"kept_out has {pattern!r}, and no matrix is called so; there are {', '.join(named)}")
    chosen = {name for name in named if not any(fnmatchcase(name, pattern) for pattern in kept_out)}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no matrix to train but what kept_out names: use `rest` alone")
    found = [_part(matrices, [parameter for name, parameter in trained if name in chosen])]
    if others := [parameter for name, parameter in trained if name not in chosen]:
        found.append(_part(rest, others))
    return Split(found)


def _part(update: Update, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if takes_model(update):
        raise TypeError("an update that takes the model cannot have a part of its parameters: use it without split")
    found = update(parameters)
    if needs_closure(found):
        raise TypeError(f"{type(found).__name__}.step needs a closure, which split has not: use it without split")
    return found


def optimizer_of(model: nn.Module, update: Update) -> torch.optim.Optimizer:
    """Build a torch optimizer of what is trained of a model; one that is ``Averaged`` is told that training begins.

    Raises:
        TypeError: all parameters are frozen, or an update that takes the model leaves some of them out.
    """
    parameters = trainable(model)
    optimizer = update(model if takes_model(update) else parameters)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if left := [tuple(parameter.shape) for parameter in parameters if id(parameter) not in held]:
        raise TypeError(
            f"{type(optimizer).__name__} would not train parameters of shapes {', '.join(map(str, left))}: "
            "freeze them, or use another update"
        )
    for part in averaged(optimizer):
        part.train()
    return optimizer


def parts_of(update: object) -> Sequence[object]:
    """Return the updates of which one is made; of any but a ``Split`` itself."""
    return update.parts if isinstance(update, Split) else [update]


def averaged(update: object) -> list[Averaged]:
    """Return those of an update's parts that are judged elsewhere than they train."""
    return [part for part in parts_of(update) if isinstance(part, Averaged)]


def takes_model(update: Update) -> bool:
    """Whether an update is built of the model: its first parameter is called so."""
    made = inspect.unwrap(update)
    while isinstance(made, functools.partial):  # whose own signature fails where a keyword of it is wrong
        made = inspect.unwrap(made.func)
    return next(iter(inspect.signature(made).parameters), None) == "model"


def needs_closure(update: torch.optim.Optimizer) -> bool:
    """Whether its ``step`` cannot be called without a closure, by its signature."""
    closure = inspect.signature(update.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def is_steady(update: torch.optim.Optimizer) -> bool:
    """Whether an update does the same work in every step: torch's own do, but for RAdam, whose sixth differs."""
    modules = [f"{type(part).__module__}." for part in parts_of(update)]  # torch.optim itself, of Adafactor and Muon
    torchs_own = all(module.startswith("torch.optim.") for module in modules)
    return torchs_own and not any(isinstance(part, torch.optim.RAdam) for part in parts_of(update))


def scheduler_of(update: torch.optim.Optimizer, scheduler: Scheduler) -> torch.optim.lr_scheduler.LRScheduler:
    """Build a schedule of an update's learning rates.

    Raises:
        TypeError: its ``step`` needs a metric (``ReduceLROnPlateau``).
    """
    found = scheduler(update)
    if any(
        given.default is inspect.Parameter.empty and given.kind is not inspect.Parameter.VAR_KEYWORD
        for given in inspect.signature(found.step).parameters.values()
    ):
        raise TypeError(f"{type(found).__name__}.step needs a metric, and a step knows none: use a schedule by steps")
    return found


@contextmanager
def explained(update: torch.optim.Optimizer) -> Iterator[None]:
    """Say of an update's first step how it is to be used, where it fails since it needs more than gradients.

    Raises:
        TypeError: it needs a closure though its signature does not say so, or differentiates ``.grad`` again.
    """
    try:
        yield
    except Exception as error:
        words = [part for part in error.args if isinstance(part, str)]  # a message of its own may raise
        name, said = type(update).__name__, f"{type(error).__name__}: {' '.join(words)}"
        if "closure" in said.lower():
            raise TypeError(
                f"{name}.step needs a closure: say optimizer.closure=again, which evaluates before it and when it asks,"
                f" or optimizer.closure=first, which leaves every evaluation to it ({said})"
            ) from error
        if "does not require grad" in said:
            raise TypeError(
                f"{name} differentiates .grad again: say optimizer.direction.graph=true of the layerwise direction, "
                f"which alone keeps the graph ({said})"
            ) from error
        raise


def load_update(update: torch.optim.Optimizer, state: StateDict) -> None:
    """Take up an update's state, each tensor in the type it was saved in.

    ``torch.optim.Optimizer.load_state_dict`` casts it to the parameter's: float32 masters and momenta of bfloat16
    weights would be rounded, and counters made fractions. What is not the update's own already is copied: steps would
    write into the caller's. A wrapper's state of another form is its own affair.
    """
    own = {id(leaf) for leaf in tree_leaves(list(update.state.values()))}
    update.load_state_dict(dict(state))  # of which some take out their own
    saved = state.get("state", {})
    for group, named in zip(update.param_groups, state.get("param_groups", []), strict=False):
        for parameter, key in zip(group["params"], named["params"], strict=True):
            if key in saved and parameter in update.state:
                update.state[parameter] = _as_saved(update.state[parameter], saved[key], own)


def _as_saved(loaded: Any, saved: Any, own: Set[int]) -> Any:
    """Return what was loaded, tensors in the type they were saved in, and nothing that is the caller's alone."""
    if isinstance(saved, dict):
        return {name: _as_saved(part, saved[name], own) if name in saved else part for name, part in loaded.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_as_saved(*parts, own) for parts in zip(loaded, saved, strict=True))
    if isinstance(saved, Tensor) and loaded.dtype != saved.dtype:
        loaded = saved.to(loaded.device)
    return deepcopy(loaded) if loaded is saved and id(saved) not in own else loaded
