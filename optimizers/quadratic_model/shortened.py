"""What a KL clip and a trust region share: a direction is made so short that a step changes the model by little."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from stepscale.models import Batch, LayerIO
from stepscale.optimizers.core.step import Mark, Paired, no_mark
from stepscale.optimizers.core.update import Update, optimizer_of
from stepscale.optimizers.kronecker.base import Kronecker

Natural = TypeVar("Natural", bound=Kronecker[Any])


class Shortened(Paired, ABC, Generic[Natural]):
    """A direction shortened so that η² times its ``change`` is at most κ, and an update of learning rate η.

    Raises:
        ValueError: ``kappa`` is not positive; or, when called, groups of parameters have learning rates of their own.
        TypeError: the update's ``step`` needs a closure, or the direction goes by the last step.
    """

    def __init__(self, model: nn.Module, natural: Natural, update: Update, kappa: float) -> None:
        if not kappa > 0:
            raise ValueError(f"kappa must be positive, got {kappa}")
        super().__init__(natural, optimizer_of(model, update))
        if self.closure is not None:
            raise TypeError(f"{type(self.update).__name__}.step needs a closure, whose gradients are not shortened")
        if self.paced is not None:
            raise TypeError(
                f"{type(natural).__name__} goes by the last step, which would be another where it is shortened: "
                "give it to pair"
            )
        self.natural, self.kappa = natural, kappa

    @torch.no_grad()
    def __call__(self, batch: Batch, mark: Mark = no_mark) -> None:
        ios = self.natural.model.capture(batch)
        self.natural.apply(ios, mark)
        self.check_once()
        eta = self.one_rate(type(self).__name__)
        self.shorten((self.kappa / (eta**2 * self.change(ios))).sqrt().clamp_max(1))
        self.update.step()
        self.conclude(batch, mark)

    @abstractmethod
    def change(self, ios: list[LayerIO]) -> Tensor:
        """By how much the direction in ``.grad`` changes the model: a scalar, in proportion to its square."""

    def shorten(self, share: Tensor) -> None:
        """O(P): leave that share of the direction."""
        for parameter in self.parameters:
            if parameter.grad is not None:  # one frozen since has none
                parameter.grad.mul_(share)
