"""What Kronecker-factored directions share: running second moments, when to invert, and the product of rank B.

A layer's preconditioned gradient is G⁻¹ ∇ A⁻¹ = (g G⁻¹)ᵀ(x̄ A⁻¹)/B − G⁻¹ [N, 0] A⁻¹ (the notation of ``frames``): a part
of rank B that costs O(B d²), and where the loss holds a log-determinant, a part of full rank from it, which no exact
step gets below O(d³). Without one no product between inversions is cubic: for fewer rows than the layer is wide the
factors of rank B are preconditioned first and multiplied last (Martens & Grosse 2015, section 8).

All statistics are means over samples (Fisher scale).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, CapturesSamples, LayerIO, LogDet, one_of
from stepscale.optimizers.core.facts import Facts
from stepscale.optimizers.core.frames import Frame, inputs, log_det_gradient, map_back, write
from stepscale.optimizers.core.schedule import Schedule
from stepscale.optimizers.core.statistics import Statistics
from stepscale.optimizers.core.step import Mark, StateDict, no_mark, require
from stepscale.optimizers.core.trained import trained

State = dict[str, Tensor]


class Kronecker(ABC):
    """A direction with an input factor A, and mostly an output factor G, for each captured layer that is trained.

    ``state`` holds each layer's tensors: the factors, whatever ``invert`` makes of them, and ``log_det``, the
    log-determinant's part.
    """

    def __init__(
        self, model: nn.Module, *, damping: float, frame: str, statistics: str, log_det: str, schedule: Schedule
    ) -> None:
        name = type(self).__name__
        self.model = require(model, Captures, name)
        sampled = one_of("statistics", Statistics, statistics) is Statistics.MODEL
        self.sampler = require(model, CapturesSamples, f"{name} (statistics=model)") if sampled else None
        self.relative = one_of("frame", Frame, frame) is Frame.RELATIVE
        kept = one_of("log_det", (LogDet.EXACT, LogDet.STALE), log_det)
        if damping < 0:
            raise ValueError(f"damping must be at least 0, got damping={damping}")
        period = math.lcm(schedule.statistics, schedule.inverse)
        self.facts = Facts(period=period, log_det=kept, writes_in_place=True)
        self.damping, self.schedule, self.stale = damping, schedule, kept is LogDet.STALE
        self.steps, self.updates = 0, 0
        self.state: list[State] = []

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        self.apply(self.model.capture(batch), mark)

    @torch.no_grad()
    def apply(self, ios: list[LayerIO], mark: Mark = no_mark) -> None:
        """Write the direction of a captured batch into ``.grad``; what is frozen has no part in it."""
        free = trained(ios, f"{type(self).__name__} with frame=relative" if self.relative else None)
        mark("gradient")
        source: list[LayerIO] | None = None
        if self.steps % self.schedule.statistics == 0:
            source = free if self.sampler is None else trained(self.sampler.capture_samples(ios))
            self._average(source)
            mark("statistics")
        if self.steps % self.schedule.inverse == 0:
            for k, (io, state) in enumerate(zip(free, self.state, strict=True)):
                self.invert(io, state, None if source is None else source[k])
            mark("inverse")
        for io, state in zip(free, self.state, strict=True):
            self.precondition(io, state)
        mark("precondition")
        self.steps += 1

    def state_dict(self) -> StateDict:
        return {"steps": self.steps, "updates": self.updates, "state": [dict(state) for state in self.state]}

    def load_state_dict(self, state: StateDict) -> None:
        self.steps, self.updates = state["steps"], state["updates"]
        own = {id(tensor) for layer in self.state for tensor in layer.values()}
        # averages are taken in place, and would be in the caller's tensors
        kept = lambda tensor: tensor if id(tensor) in own else tensor.clone()  # noqa: E731
        self.state = [{name: kept(tensor) for name, tensor in layer.items()} for layer in state["state"]]

    def average(self, state: State, io: LayerIO, keep: float) -> None:
        """O(B d²): take a batch into a layer's factors, which keep that share of what they were."""
        state["A"] = averaged(state.get("A"), inputs(io, self.relative), keep)
        state["G"] = averaged(state.get("G"), io.delta, keep)

    @abstractmethod
    def invert(self, io: LayerIO, state: State, fresh: LayerIO | None) -> None:
        """Make anew what ``precondition`` needs; ``fresh`` is what the factors have just taken in, if they have."""

    def precondition(self, io: LayerIO, state: State) -> None:
        """Write G⁻¹ ∇ A⁻¹, mapped back to the parameters, into ``.grad``; no ``G_inv`` in the state says G = I."""
        x, A_inv, G_inv = inputs(io, self.relative), state["A_inv"], state.get("G_inv")
        out, width = io.layer.weight.shape
        if not io.log_det and full_is_cheaper(len(x), out, width, sides=1 if G_inv is None else 2):
            gradient = (x.T @ io.delta).div_(len(x))
            return write(io.layer, gradient if G_inv is None else gradient @ G_inv, A_inv, None)
        left = io.delta / len(x) if G_inv is None else (io.delta @ G_inv).div_(len(x))
        right = x @ A_inv
        if self.relative and io.log_det:  # associated from the right, so that mapping it back costs O(B d²)
            right = map_back(right, io.layer)
        return write(io.layer, left, right, self.log_det_part(io.layer, state) if io.log_det else None)

    def log_det_part(self, layer: nn.Linear, state: State) -> Tensor:
        """O(d³), and O(1) where it is stale: G⁻¹ [N, 0] A⁻¹ in the parameters; its bias column is not zero."""
        if self.stale:
            return state["log_det"]
        return self.fresh_log_det_part(layer, state)

    def fresh_log_det_part(self, layer: nn.Linear, state: State) -> Tensor:
        """O(d³): the same, of today's W and the last inverses."""
        if self.relative:  # the part within the frame is made when the inverses are: one product here, not two
            return map_back(state["within"], layer)
        part = log_det_gradient(layer) @ state["A_inv"][: layer.in_features]
        return part if "G_inv" not in state else state["G_inv"] @ part

    def keep_log_det_part(self, io: LayerIO, state: State) -> None:
        """O(d³): after an inversion, keep what later steps need of the log-determinant's part."""
        if not io.log_det:
            return
        if self.relative:
            rows = state["A_inv"][: io.layer.in_features]
            state["within"] = rows if "G_inv" not in state else state["G_inv"] @ rows
        if self.stale:
            state["log_det"] = self.fresh_log_det_part(io.layer, state)
            state.pop("within", None)

    def _average(self, source: list[LayerIO]) -> None:
        self.updates += 1
        keep = min(1 - 1 / self.updates, self.schedule.decay)
        self.state = self.state or [{} for _ in source]
        for io, state in zip(source, self.state, strict=True):
            self.average(state, io, keep)


def averaged(moments: Tensor | None, x: Tensor, keep: float) -> Tensor:
    """O(B d²): keep · moments + (1 − keep) · E[x xᵀ] over the rows of ``[batch, dim]``, in place but for the first."""
    if moments is None:
        return x.T @ x / len(x)
    return moments.addmm_(x.T, x, beta=keep, alpha=(1 - keep) / len(x))


def full_is_cheaper(rows: int, out: int, width: int, sides: int = 2) -> bool:
    """Whether to form a gradient ``[out, width]`` and precondition it rather than its factors of so many rows.

    ``sides`` 1 is the input's alone.
    """
    left = out if sides == 2 else 0
    return out * width * (rows + left + width) < rows * (left * left + width * width + out * width)
