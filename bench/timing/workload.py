"""What is timed: a step on a few batches, which can be put back to an earlier state in place."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from stepscale.models import Batch
from stepscale.optimizers import Mark, StateDict, Step, facts_of, no_mark

ROWS = 4096  # looked at together: a whole wide weight's answer would not fit beside it


class Snapshot(NamedTuple):
    """All that a step changes."""

    tensors: list[Tensor]
    step: StateDict
    position: int
    rng: Tensor
    cuda_rng: Tensor | None


class Workload:
    """A step with the model it trains and the batches it rotates through, all on one device.

    Raises:
        TypeError: the step has no ``facts``.
    """

    def __init__(self, model: nn.Module, step: Step, batches: list[Batch], compile_mode: str | None = None) -> None:
        self.model, self.step, self.batches = model, step, batches
        self.compiled: Callable[[Batch], None] | None = None
        if compile_mode is not None:
            _quieten()
            with suppress(AttributeError):  # torch 2.5 has no such setting
                torch._dynamo.config.fail_on_recompile_limit_hit = True  # or it would go on uncompiled, and not say so
            self.compiled = torch.compile(lambda batch: step(batch), mode=compile_mode)
        self.facts, self.position = facts_of(step), 0
        self.period = self.facts.period
        self.device = next(model.parameters()).device

    def run(self, steps: int, mark: Mark | None = None) -> None:
        """Run that many steps, going on where the last call stopped; compiled, if they are to be, where none marks."""
        step, batches, first = self.step, self.batches, self.position
        positions = range(first, first + steps)
        if self.compiled is not None and mark is None:
            for position in positions:
                self.compiled(batches[position % len(batches)])
        else:
            mark = mark or no_mark
            for position in positions:
                step(batches[position % len(batches)], mark)
        self.position = first + steps

    @property
    def graphs(self) -> int | None:
        """Into how many pieces this process's compiler has cut the step so far; None where none is at work."""
        from torch._dynamo.utils import counters  # seconds to load, where it is not

        return None if self.compiled is None else int(counters["stats"]["unique_graphs"])

    def whole_periods(self, least: float) -> int:
        """Return the fewest steps that are whole periods, at least one, and no fewer than ``least``."""
        return self.period * max(1, math.ceil(least / self.period))

    def snapshot(self) -> Snapshot:
        """Copy parameters, buffers, the step's state and the generators."""
        cuda = self.device.type == "cuda"
        return Snapshot(
            [tensor.detach().clone() for tensor in self._tensors()],
            deepcopy(self.step.state_dict()),
            self.position,
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self.device) if cuda else None,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put it all back, parameters and buffers in place."""
        with torch.no_grad():
            for tensor, saved in zip(self._tensors(), snapshot.tensors, strict=True):
                tensor.copy_(saved)
            if self.compiled is None:  # which is compiled for its own tensors, and anew for any others
                self.step.load_state_dict(copied(snapshot.step, self.step.state_dict()))
        self.position = snapshot.position
        torch.set_rng_state(snapshot.rng)
        if snapshot.cuda_rng is not None:
            torch.cuda.set_rng_state(snapshot.cuda_rng, self.device)

    def finite(self) -> bool:
        """Whether every parameter is a finite number."""
        parameters = (torch.atleast_1d(parameter.detach()) for parameter in self.model.parameters())
        parts = (part for parameter in parameters for part in parameter.split(ROWS))
        return all(bool(torch.isfinite(part).all()) for part in parts)

    def _tensors(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]


def _quieten() -> None:
    """Have the compiler start no process, which would run beside the steps, and say only what ``TORCH_LOGS`` asks."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if "TORCH_LOGS" not in os.environ:
        torch._logging.set_logs(all=logging.ERROR)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", module=r"torch\.")


def copied(saved: StateDict, into: StateDict) -> StateDict:
    """Copy a state that a step is to load and keep: into the tensors it has now, where they are like it; else anew.

    A state takes as much memory as the step itself, which a third copy beside the saved one would need at each restore.
    """
    kept, kept_form = tree_flatten(saved)
    live, live_form = tree_flatten(into)
    if kept_form != live_form or not all(map(alike, live, kept)):
        return deepcopy(saved)
    for there, value in zip(live, kept, strict=True):
        if isinstance(value, Tensor):
            there.copy_(value)
    leaves = [there if isinstance(value, Tensor) else deepcopy(value) for there, value in zip(live, kept, strict=True)]
    found: StateDict = tree_unflatten(leaves, kept_form)
    return found


def alike(there: object, value: object) -> bool:
    """Whether one leaf of a state can take up another's numbers in place."""
    if not isinstance(there, Tensor) or not isinstance(value, Tensor):
        return not isinstance(there, Tensor) and not isinstance(value, Tensor)
    same = (there.shape, there.dtype, there.device) == (value.shape, value.dtype, value.device)
    return same and not there.requires_grad and 0 not in there.stride()
