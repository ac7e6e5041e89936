"""A direction whose rows come one part after the other, so that the activations of one part alone are kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stepscale.models import Batch, rows_of
from stepscale.optimizers.core.facts import facts_of
from stepscale.optimizers.core.step import Direction, Mark, StateDict, no_mark
from stepscale.optimizers.distributed.rows import is_mean, terms_of


class Accumulated:
    """A direction's O(…) in parts: Σ share · ``.grad`` of a part, in 1/parts of the activations' memory.

    A part's share is its part of the terms that the loss is a mean of, so that parts may differ in size. What is of the
    parameters alone is done once a part: a log-determinant's O(d³) costs ``parts`` times as much. A layer that sees a
    whole batch at once, as batch normalisation, sees a part instead.

    Args:
        model: what is trained.
        direction: builds the direction from the model; it must be a mean over rows, and remember nothing of a batch.
        parts: of a batch, as equal as its rows allow.

    Raises:
        TypeError: the direction is no mean over rows, as K-FAC, whose statistics are of a whole batch.
        ValueError: ``parts`` is below 1, or the direction counts its calls. Or, when called, a batch has fewer rows
            than parts, or a gradient has a graph.
    """

    def __init__(self, model: nn.Module, direction: Callable[[nn.Module], Direction], parts: int) -> None:
        if parts < 1:
            raise ValueError(f"parts must be at least 1, got {parts}")
        self.model, self.parts, self.direction = model, parts, direction(model)
        self.facts, name = facts_of(self.direction), type(self.direction).__name__
        if not is_mean(self.direction):
            raise TypeError(
                f"{name} is no mean over rows: its statistics are of a whole batch, and parts would change them; use an"
                " exact gradient or Relative"
            )
        if (self.facts.period, self.facts.settled) != (1, 0):
            raise ValueError(
                f"{name} repeats its work every {self.facts.period} calls, and each part is a call: set interval to 1"
            )
        self.parameters = list(model.parameters())

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> Tensor | None:
        total, sums = terms_of(self.model, batch), dict[nn.Parameter, Tensor]()
        losses: list[Tensor] = []
        for part in parts_of_batch(batch, self.parts):
            if not self.facts.writes_in_place:
                for parameter in self.parameters:
                    parameter.grad = None
            loss, share = self.direction(part, mark), terms_of(self.model, part) / total
            losses += [] if loss is None else [loss.detach() * share]
            self._add(sums, share)
        for served, gradient in sums.items():
            served.grad = gradient
        mark("gradient")
        return torch.stack(losses).sum() if losses else None

    def _add(self, sums: dict[nn.Parameter, Tensor], share: float) -> None:
        """Add a share of every gradient to its sum."""
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.requires_grad:
                raise ValueError("gradients that have a graph keep every part's activations: set direction.graph=false")
            if parameter in sums:
                sums[parameter].add_(gradient, alpha=share)
            else:
                sums[parameter] = gradient * share  # a tensor of its own: the direction may write over .grad

    def state_dict(self) -> StateDict:
        return self.direction.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.direction.load_state_dict(state)


def parts_of_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch's rows, in order, into parts that differ by one row at most.

    Raises:
        ValueError: there are fewer rows than parts.
    """
    if rows_of(batch) < parts:
        rows = rows_of(batch)
        raise ValueError(f"a batch of {rows} rows has no {parts} parts: set parts to {rows} or less")
    if isinstance(batch, Tensor):
        return list(batch.tensor_split(parts))
    return list(zip(*(part.tensor_split(parts) for part in batch), strict=True))
