"""KLD-WRM in its form QE: near all earlier iterates by their divergences themselves, and not by a second order of them.

Puiu 2022, "Rethinking exponential averaging of the Fisher", ECML PKDD, arXiv 2204.04718; ``KLDWRM`` has the forms that
need no iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from stepscale.models import Batch, Captures, CapturesSamples, ExpectsTargets, FisherTimes, HasLoss, LayerIO, Tangents
from stepscale.optimizers.core.step import Mark, Paired, StateDict, no_mark, require
from stepscale.optimizers.core.tangents import flat, mean_gradients, unflat
from stepscale.optimizers.core.update import Update, optimizer_of
from stepscale.optimizers.quadratic_model.wake import KLDWRM


class Divergent(HasLoss, Captures, CapturesSamples, FisherTimes, ExpectsTargets, Protocol):
    """A model whose divergence from another's outputs can be trained."""


class NearAll(Paired):
    """A step of KLD-WRM, and from where it leads some of gradient descent on what it minimises; O(B P) an iteration.

    That is, over the step s from θ_k, with the learning rate η and the Fisher matrix F of the batch,

        gᵀs + ½ sᵀF s + 1/η (Σ_i w_i KL(p(θ_i) ‖ p(θ_k + s)) + ½ λ ‖s‖²),

    the divergences given the batch's inputs, of the last ``stored`` iterates with θ_k among them, and the weights w_i
    those of ``KLDWRM``'s averages. Beside that step it costs a forward pass an iterate and, an iteration, a gradient
    and a product with F. The authors take the divergences both ways, divide them by 330 and clip what an iteration
    does; here they are as the paper defines them, and a smaller ``rate`` is the remedy where iterations diverge.

    Args:
        model: what both are built with, trained on targets: ``Autoencoder``, ``Classifier``.
        direction: builds a ``KLDWRM`` of ``order="q"``.
        update: builds plain descent; η is its learning rate.
        iterations: of gradient descent.
        rate: of it, times η; so the divergences enter an iteration by ``rate`` alone, whatever η, but at η = 0, where
            nothing moves.
        momentum: of it.
        stored: how many iterates divergences are from.

    Raises:
        ValueError: a number is out of its range, or the direction's order is another.
        TypeError: the direction is another, or the model lacks a method.
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Callable[[nn.Module], KLDWRM],
        update: Update,
        *,
        iterations: int = 7,
        rate: float = 0.1,
        momentum: float = 0.5,
        stored: int = 3,
    ) -> None:
        self.near = require(model, Divergent, "KLD-WRM")
        if iterations < 1 or stored < 1 or not rate > 0 or not 0 <= momentum < 1:
            raise ValueError(
                "iterations and stored must be at least 1, rate positive and momentum in [0, 1), got "
                f"iterations={iterations}, stored={stored}, rate={rate} and momentum={momentum}"
            )
        natural = direction(model)
        if not isinstance(natural, KLDWRM):
            raise TypeError(f"NearAll refines a step of KLDWRM, got {type(natural).__name__}")
        if not natural.quadratic:
            raise ValueError("NearAll minimises what has a quadratic M: set direction.order=q")
        super().__init__(natural, optimizer_of(model, update))
        self.natural, self.stored = natural, stored
        self.iterations, self.rate, self.momentum = iterations, rate, momentum
        self.facts = replace(self.facts, settled=max(self.facts.settled, stored - 1))  # until so many are there
        self.weights: list[float] = []  # of the iterates, the oldest first
        self.iterates: list[Tensor] = []  # [P] each, what is trained

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.near.capture(batch)
        layers = [io.layer for io in ios]
        self._remember(flat(parameters(layers)))
        near, g = self._expected(batch, layers), flat(mean_gradients(ios))
        mark("divergences")
        self.tell_rate()
        self.natural.apply(ios, mark)
        self.check_once()
        self.update.step()
        mark("update")
        if self.natural.rate:  # at a rate of 0 nothing moves, as of KLDWRM
            self._descend(ios, g, near)
        mark("divergences")

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "weights": list(self.weights), "iterates": list(self.iterates)}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self.weights, self.iterates = list(state["weights"]), list(state["iterates"])

    def _remember(self, place: Tensor) -> None:
        """O(1): take a place among the iterates, weighted as the averages weigh its batch."""
        rho = min(1 - 1 / (self.natural.steps + 1), self.natural.schedule.decay)
        self.weights = [*(rho * weight for weight in self.weights), 1 - rho][-self.stored :]
        self.iterates = [*self.iterates, place][-self.stored :]

    def _expected(self, batch: Batch, layers: list[nn.Linear]) -> tuple[Tensor, Tensor]:
        """O(B P) an iterate: the batch's inputs with the weighted mean of what all iterates expect of their targets."""
        total, parts = sum(self.weights), list[Tensor]()
        for place, weight in zip(self.iterates, self.weights, strict=True):  # the last is where the parameters are
            put(layers, place)
            x, mean = self.near.with_expected_targets(batch)
            parts.append(mean * (weight / total))
        return x, torch.stack(parts).sum(0)

    def _descend(self, ios: list[LayerIO], g: Tensor, near: tuple[Tensor, Tensor]) -> None:
        """O(B P) an iteration: gradient descent from where the step has led."""
        layers, start = [io.layer for io in ios], self.iterates[-1]
        eta, total = self.natural.rate, sum(self.weights)
        place, velocity = flat(parameters(layers)), torch.zeros_like(start)
        for _ in range(self.iterations):
            apart, s = flat(mean_gradients(self.near.capture(near))), place - start
            put(layers, start)  # where F is taken
            curved = flat(mean_gradients(self.near.fisher_times(ios, unflat(s, layers))))
            velocity = self.momentum * velocity + eta * (g + curved) + total * apart + self.natural.damping * s
            place = place - self.rate * velocity
            put(layers, place)


def parameters(layers: list[nn.Linear]) -> Tangents:
    """What is trained of the layers; None for what is frozen."""
    return [(_trained(layer.weight), _trained(layer.bias)) for layer in layers]


def _trained(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is not None and parameter.requires_grad else None


def put(layers: list[nn.Linear], place: Tensor) -> None:
    """O(P): bring what is trained of the layers to a place, ``[P]``."""
    for layer, (W, b) in zip(layers, unflat(place, layers), strict=True):
        if W is not None:
            layer.weight.copy_(W)
        if b is not None:
            layer.bias.copy_(b)
