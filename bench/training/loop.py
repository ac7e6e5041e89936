"""Training of one cell: how far its steps get, by number and by seconds of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec.structs import astuple
from torch import Tensor, nn

from stepscale.bench.data.dataset import Dataset
from stepscale.bench.machine import generators
from stepscale.bench.machine.clock import Clock
from stepscale.bench.records.schema import Curve, Final
from stepscale.bench.training.batches import Stream
from stepscale.bench.training.evaluation import judged, mean_log_likelihood
from stepscale.models import HasLoss, each, objective_of, offers, tokens_of_row
from stepscale.optimizers import Iterative, StateDict, Step, Tracked

GROWTH, LONGEST = 1.2, 2_000  # evaluations: each this factor of steps after the last, and no more steps apart
CHUNK, CHUNK_S = 64, 0.1  # steps run between two looks at the clock, and for how long
COUNTS = dict.fromkeys(("max_steps", "rows", "evaluation_rows", "patience", "full_batch_at"), 1)  # least of each
COUNTS |= dict.fromkeys(("pictures", "curvature"), 0)


@dataclass(frozen=True)
class Settings:
    """How long to train and what to keep; the files in ``conf/training/``."""

    max_steps: int | None
    time_limit_s: float | None  # of steps: loading and evaluating do not count
    rows: int | None  # to train on; None for as many as the data think right
    evaluation_rows: int  # of each split, or so many tokens, for a point of the curve; the final figures use all
    patience: int | None  # evaluations without a better validation likelihood that end it
    checkpoint_s: float
    pictures: int  # samples and filters kept, where rows are images
    trial: bool  # of tuning: held-out rows are not looked at
    curvature: int = 0  # random batches of each size whose Hessian is looked at afterwards
    full_batch_at: int | None = None  # the step from which on a batch has all train rows; None for a constant batch

    def __post_init__(self) -> None:
        if self.max_steps is self.time_limit_s is self.patience is None:
            raise ValueError("training.max_steps, time_limit_s and patience are all null: training would never end")
        for name in ("time_limit_s", "checkpoint_s"):
            value = vars(self)[name]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
                raise ValueError(f"training.{name} must be a positive number, got {value!r}")
        for name, least in COUNTS.items():
            count = vars(self)[name]
            unlimited = count is None and least == 1
            if not unlimited and (isinstance(count, bool) or not isinstance(count, int) or count < least):
                raise ValueError(f"training.{name} must be a whole number of at least {least}, got {count!r}")
        if not isinstance(self.trial, bool):
            raise ValueError(f"training.trial must be true or false, got {self.trial!r}")


class Progress(msgspec.Struct, kw_only=True):
    """How far a training run is."""

    position: Annotated[int, msgspec.Meta(ge=0)]  # steps
    seconds: Annotated[float, msgspec.Meta(ge=0)]  # of steps


class Training:
    """A model, its step, and how far they are. All of it can be saved, and taken up again to the same end."""

    def __init__(self, model: nn.Module, step: Step, data: Dataset, stream: Stream, settings: Settings) -> None:
        self.model, self.step, self.data, self.stream, self.settings = model, step, data, stream, settings
        self.position, self.seconds = 0, 0.0
        self.curve = Curve()
        self.best: dict[str, Tensor] | None = None  # parameters as judged, kept only where patience asks for them
        rescaling = data.rescaling if objective_of(model).of_rows else None
        self.unit_nats = rescaling.nats if rescaling else 0.0  # brings likelihoods to the units they are quoted in

    def run(self, clock: Clock, look: Callable[[], None]) -> str:
        """Train until the budget ends, and say what ended it; ``look`` is called every now and then, between steps.

        Raises:
            FloatingPointError: a parameter or a likelihood is not finite; the curve ends before it.
        """
        if not self.curve.step:
            self._evaluate()
        while not (reason := self._ended()):
            stop = next_evaluation(self.curve.step[-1])  # not from the position: a resumed run may lie just before one
            stop = stop if self.settings.max_steps is None else min(stop, self.settings.max_steps)
            while self.position < stop and not self._out_of_time():
                self._advance(stop, clock)
                look()
            self._evaluate()
        return reason

    def final(self) -> Final:
        """Return the likelihoods over all rows of the splits; with patience, of the best parameters."""
        validation, held_out = self._likelihoods(self.result(), None)
        return Final(validation_nats=validation, held_out_nats=held_out)

    def result(self) -> nn.Module:
        """Return a copy of what was trained, in eval mode; with patience, of the best parameters."""
        model = judged(self.model, self.step)
        if self.best is not None:
            model.load_state_dict(self.best)
        return model

    def done(self) -> float:
        """Return how much of the budget is spent, from 0 to 1."""
        steps, limit_s = self.settings.max_steps, self.settings.time_limit_s
        shares = [self.position / steps if steps else 0.0, self.seconds / limit_s if limit_s else 0.0]
        return min(1.0, max(shares))

    def state_dict(self) -> StateDict:
        return {
            "model": self.model.state_dict(),
            "step": self.step.state_dict(),
            "generators": generators.states(self.stream.device),
            "progress": msgspec.to_builtins(Progress(position=self.position, seconds=self.seconds)),
            "curve": msgspec.to_builtins(self.curve),
            "best": self.best,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Take up a saved run.

        Raises:
            ValueError, or what torch raises: it is of another run, or its parts do not belong together.
        """
        self.model.load_state_dict(state["model"])
        self.step.load_state_dict(state["step"])
        generators.restore(state["generators"], self.stream.device)
        self.curve, self.best = msgspec.convert(state["curve"], Curve), state["best"]
        progress = msgspec.convert(state["progress"], Progress)
        self.position, self.seconds = progress.position, progress.seconds
        last = self.curve.step[-1] if self.curve.step else 0
        if not last <= self.position <= next_evaluation(last) or len(set(map(len, astuple(self.curve)))) > 1:
            raise ValueError(f"its curve does not lead to step {self.position}")
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise ValueError("a parameter is no finite number")

    def _advance(self, stop: int, clock: Clock) -> None:
        """Run some steps; their batches are gathered before the clock starts."""
        mean_s = self.seconds / self.position if self.position else CHUNK_S
        most = CHUNK * self.stream.batch // self.stream.size(self.position + 1)  # of batches that grow: as many rows
        count = min(stop - self.position, max(1, min(most, int(CHUNK_S / mean_s))))
        batches, step = [self.stream.at(self.position + k) for k in range(count)], self.step
        clock.synchronize()
        began = clock.stamp()
        for batch in batches:
            step(batch)
        ended = clock.stamp()
        clock.synchronize()
        self.seconds += clock.seconds(began, ended)
        self.position += count

    def _evaluate(self) -> None:
        """Add a point to the curve, and anchor a step that tracks its likelihood."""
        model = judged(self.model, self.step)
        parameters = model.state_dict()  # which stay of the model's own type
        validation, held_out = self._likelihoods(model, self.settings.evaluation_rows)
        tracked = self.step if isinstance(self.step, Tracked) else None
        self.curve.step.append(self.position)
        self.curve.seconds.append(self.seconds)
        self.curve.validation_nats.append(validation)
        self.curve.held_out_nats.append(held_out)
        self.curve.drift_nats.append(tracked.anchor() if tracked else None)
        self.curve.halved.append(tracked.halved if tracked else None)
        iterative = self.step if isinstance(self.step, Iterative) else None
        self.curve.inner_iterations.append(iterative.inner_iterations if iterative else None)
        if self.settings.patience is not None and self._stale() == 0:
            self.best = parameters

    def _likelihoods(self, model: nn.Module, rows: int | None) -> tuple[float, float | None]:
        """Return those of the validation and of the held-out rows, the latter None in a trial; the model is widened.

        Here alone they are brought to the units that they are quoted in; every figure of a run comes from here.
        """
        exact = model.double()
        assert offers(exact, HasLoss)  # it has been trained by it
        rows = None if rows is None else max(1, rows // tokens_of_row(self.data.validation))
        validation = mean_log_likelihood(exact, each(self.data.validation, lambda part: part[:rows]))
        held_out = None
        if not self.settings.trial:
            held_out = mean_log_likelihood(exact, each(self.data.held_out, lambda part: part[:rows]))
        for value in (validation, held_out):
            if value is not None and not math.isfinite(value):
                raise FloatingPointError(f"the log-likelihood is {value} after step {self.position}: lower the lr")
        return validation + self.unit_nats, None if held_out is None else held_out + self.unit_nats

    def _stale(self) -> int:
        """How many evaluations ago the best one was."""
        values = self.curve.validation_nats
        return len(values) - 1 - max(range(len(values)), key=values.__getitem__)

    def _out_of_time(self) -> bool:
        return self.settings.time_limit_s is not None and self.seconds >= self.settings.time_limit_s

    def _ended(self) -> str | None:
        if self.settings.max_steps is not None and self.position >= self.settings.max_steps:
            return "max_steps"
        if self.settings.patience is not None and self._stale() >= self.settings.patience:
            return "patience"
        return "time_limit_s" if self._out_of_time() else None


def next_evaluation(position: int) -> int:
    """Return the step at which to evaluate next: 1, 2, 3, … by a growing distance, whatever the last stop was."""
    point = 1
    while point <= position:
        point = min(point + LONGEST, max(point + 1, math.ceil(point * GROWTH)))
    return point
