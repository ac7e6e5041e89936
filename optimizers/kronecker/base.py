"""What Kronecker-factored directions share: when to average, when to invert, and when to write.

A method says two things. *What is averaged* is ``average``, which keeps a layer's ``Moments`` (``moments.py``). *How
they are applied* is ``applied_to``, which makes of them what writes the layer's direction: mostly a matrix for each
side of the gradient (``two_sided.py``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Generic, Protocol, TypedDict, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from stepscale.models import (
    Batch,
    Captures,
    CapturesSamples,
    DrawsTargets,
    HasLoss,
    Hooked,
    LayerIO,
    LogDet,
    Rest,
    first,
    offers,
    one_of,
    reduced,
    with_rule,
)
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.frames import Frame
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.statistics import Sharing, Statistics
from stepscale.optimizers.core.step import Mark, StateDict, no_mark, require
from stepscale.optimizers.core.trained import trained
from stepscale.optimizers.kronecker.moments import Moments, of_samples


class Applied(Protocol):
    """What writes one layer's direction until the next inversion."""

    def write(self, io: LayerIO, relative: bool, damping: float) -> None:
        """Write a captured layer's direction, mapped back to the parameters, into ``.grad``; ``damping`` is today's."""
        ...

    def state_dict(self) -> StateDict: ...


Kind = TypeVar("Kind", bound=Applied)


class Options(TypedDict, total=False):
    """What every method of the family takes, and treats alike; ``KFAC`` says what they are."""

    frame: str
    schedule: Schedule
    shared: str
    rest: str
    statistics_share: float


class Alone:
    """One process that has all rows, and makes for every layer what its direction needs; ranks share that."""

    def averaged(self, direction: Kronecker[Kind], source: list[LayerIO], keep: float) -> list[Moments]:
        """Take captured layers into the direction's moments, which keep that share of what they were."""
        there: list[Moments | None] = [*direction.moments] or [None] * len(source)
        return [direction.average(moments, io, keep) for moments, io in zip(there, source, strict=True)]

    def made(self, direction: Kronecker[Kind], free: list[LayerIO], source: list[LayerIO] | None) -> list[Kind]:
        """Make anew what is applied to each layer; ``source`` is what the moments have just taken in, if they have."""
        fresh: list[LayerIO | None] = [None] * len(free) if source is None else [*source]
        return [direction.applied_to(*layer) for layer in zip(free, direction.moments, fresh, strict=True)]


class Kronecker(ABC, Generic[Kind]):
    """A direction with second moments of each captured layer that is trained, and what it makes of them.

    Attributes:
        moments: of each layer that is trained.
        applied: what has been made of them, for each layer.
        work: who averages and makes them: this process alone, or ranks (``stepscale.optimizers.distributed``).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: float,
        statistics: str = Statistics.MODEL,
        log_det: str = LogDet.EXACT,
        frame: str = Frame.RELATIVE,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
        shared: str = Sharing.EXPAND,
        rest: str = Rest.REFUSE,
        statistics_share: float = 1.0,
    ) -> None:
        name = type(self).__name__
        self.model = capturing(model, name, one_of("rest", Rest, rest))
        sampled = one_of("statistics", Statistics, statistics) is Statistics.MODEL
        self.sampler = sampling(model, self.model, name) if sampled else None
        self.share = share_of("statistics_share", statistics_share)
        if self.share < 1 and sampled and isinstance(self.model, Hooked):
            raise ValueError("hooks draw targets for a whole batch: set statistics_share=1, or statistics=data")
        self.reduce = one_of("shared", Sharing, shared) is Sharing.REDUCE
        self.relative = one_of("frame", Frame, frame) is Frame.RELATIVE
        kept = one_of("log_det", (LogDet.EXACT, LogDet.STALE), log_det)
        if damping < 0:
            raise ValueError(f"damping must be at least 0, got damping={damping}")
        period = math.lcm(schedule.statistics, schedule.inverse)
        self.facts = Facts(period=period, settled=schedule.eager, log_det=kept, writes_in_place=True)
        self.damping, self.schedule, self.stale = damping, schedule, kept is LogDet.STALE
        self.steps, self.updates = 0, 0
        self.moments: list[Moments] = []
        self.applied: list[Kind] = []
        self.work = Alone()

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.apply(self.model.capture(batch), mark)

    @torch.no_grad()
    def apply(self, ios: list[LayerIO], mark: Mark = no_mark) -> None:
        """Write the direction of a captured batch into ``.grad``; what is frozen has no part in it."""
        relative = f"{type(self).__name__} with frame=relative, unlike euclidean,"
        free = trained(ios, relative if self.relative else None, shared=True)
        self._require_as_before(free)
        mark("gradient")
        source: list[LayerIO] | None = None
        if self.steps % self.schedule.statistics == 0:
            source = self._source(ios, free)
            self.observe(source)
            mark("statistics")
        renewed = self.steps % self.schedule.inverse == 0 or (self.steps < self.schedule.eager and source is not None)
        if renewed:
            self._invert(free, source)
            mark("inverse")
        self.write(free, renewed)
        mark("precondition")
        self.steps += 1

    @torch.no_grad()
    def again(self, ios: list[LayerIO], damping: float) -> None:
        """O(L d³) beside a write: the direction of the batch as it would be under another damping."""
        free = trained(ios, shared=True)
        self.damping = damping
        self._invert(free, None)
        self.write(free, True)

    def state_dict(self) -> StateDict:
        return {
            "steps": self.steps,
            "updates": self.updates,
            "moments": [dict(vars(moments)) for moments in self.moments],
            "applied": [applied.state_dict() for applied in self.applied],
        }

    def load_state_dict(self, state: StateDict) -> None:
        own = {id(leaf) for leaf in tree_leaves(self.state_dict())}
        # averages are taken in place, and would be in the caller's tensors; a deep copy keeps rows aligned
        kept = tree_map(lambda leaf: leaf if id(leaf) in own else deepcopy(leaf), state)
        self.steps, self.updates = kept["steps"], kept["updates"]
        self.moments = [Moments(**saved) for saved in kept["moments"]]
        self.applied = [self.restored(saved) for saved in kept["applied"]]

    def observe(self, source: list[LayerIO]) -> None:
        """Take captured layers into the averages: a plain mean at first, then one that forgets."""
        self.updates += 1
        self.moments = self.work.averaged(self, source, min(1 - 1 / self.updates, self.schedule.decay))

    def write(self, free: list[LayerIO], renewed: bool) -> None:
        """Write each layer's direction into ``.grad``; ``renewed`` says whether what is applied has just been made."""
        for io, applied in zip(free, self.applied, strict=True):
            applied.write(io, self.relative, self.damping)

    def average(self, there: Moments | None, io: LayerIO, keep: float) -> Moments:
        """O(B d²): take a batch into a layer's moments, which keep that share of what they were; in place."""
        return of_samples(there, io, self.relative, keep)

    @abstractmethod
    def applied_to(self, io: LayerIO, moments: Moments, fresh: LayerIO | None) -> Kind:
        """Make anew what is applied; ``fresh`` is what the moments have just taken in, if they have."""

    @abstractmethod
    def restored(self, saved: StateDict) -> Kind:
        """Make what is applied of its ``state_dict``."""

    def _require_as_before(self, free: list[LayerIO]) -> None:
        """See that what is trained is what there are moments of.

        Raises:
            ValueError: parameters have been frozen or freed since.
        """
        there = [moments.A.shape[-1] for moments in self.moments]
        found = [io.a.shape[1] + (io.layer.bias is not None) for io in free]
        if there and there != found:
            raise ValueError(
                f"{type(self).__name__} has moments of layers that see {there} inputs and ones, and those trained now "
                f"see {found}: build the step anew after freezing or freeing parameters"
            )

    def _source(self, ios: list[LayerIO], free: list[LayerIO]) -> list[LayerIO]:
        """What this step's statistics are of: of the captured layers, and of those that are trained."""
        seen = free if self.sampler is None else ios
        few = seen if self.share == 1 else [first(io, self.share) for io in seen]
        source = few if self.sampler is None else trained(self.sampler.capture_samples(few), shared=True)
        return [reduced(io) for io in source] if self.reduce else source

    def _invert(self, free: list[LayerIO], source: list[LayerIO] | None) -> None:
        self.applied = self.work.made(self, free, source)


def share_of(option: str, value: float) -> float:
    """Return a share of a batch's samples.

    Raises:
        ValueError: it is none; ``option`` is what the message calls it.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{option} must lie in (0, 1], got {value}")
    return value


def capturing(model: nn.Module, direction: str, rest: Rest) -> Captures:
    """Return the model, or where it has no ``capture`` and modules with a rule, one that captures it by hooks.

    Raises:
        TypeError: it lacks ``capture``, and has no such modules, or no ``loss``.
    """
    if offers(model, Captures) or not with_rule(model):
        return require(model, Captures, direction)
    require(model, HasLoss, direction)
    return Hooked(model, direction, rest)


def sampling(model: nn.Module, captures: Captures, direction: str) -> CapturesSamples:
    """Return what captures the model's own samples.

    Raises:
        TypeError: it lacks the method.
    """
    direction = f"{direction} (statistics=model, where statistics=data draws nothing)"
    if isinstance(captures, Hooked):
        require(model, DrawsTargets, direction)
        return captures
    return require(model, CapturesSamples, direction)
