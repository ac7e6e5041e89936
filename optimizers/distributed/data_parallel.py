"""A direction whose rows are shared by ranks, which write what one rank with all of them writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from stepscale.models import Batch
from stepscale.optimizers.core.facts import facts_of
from stepscale.optimizers.core.step import Direction, LearnsAfterwards, Mark, StateDict, no_mark
from stepscale.optimizers.distributed.owners import Owners, OwnSamples
from stepscale.optimizers.distributed.ranks import Ranks
from stepscale.optimizers.distributed.rows import is_mean, terms_of
from stepscale.optimizers.kronecker.base import Kronecker
from stepscale.optimizers.kronecker.momentum import WithMomentum


class Work(NamedTuple):
    """What a rank has of a step that others may have less or more of."""

    rows: int
    owned: tuple[int, ...]  # places of the layers that it inverts


class DataParallel:
    """Each rank's share of a direction's O(…), and one all-reduce of all gradients: Σ share · ``.grad``, flattened.

    Every rank is called with the whole batch, and takes its part of the rows. Its share is its part of the terms that
    the loss is a mean of, so that parts may differ in size. A ``Kronecker`` direction shares its moments and inverses,
    too (``Owners``). Any other must be a mean over rows.

    Log-determinants are of the parameters alone: every rank computes its own, and their O(d³) is not shared but for
    what is made with an owner's inverses. Each rank draws the model's samples, for its own rows, from a generator of
    its own: statistics of the model are as good as one rank's, and not the same numbers; nor are sketches of low rank.
    Probes (``StochasticTrace``) come from the common generator, which must be the same in all ranks.

    Without a process group it is the direction itself. The parameters of rank 0 are sent to all when this is built.

    Args:
        model: what is trained; the same on all ranks.
        direction: builds the direction from the model.

    Raises:
        TypeError: the direction is no mean over rows, or takes more of them than its moments.
        ValueError: statistics are of a share of the rows. Or, when called, a batch has fewer rows than there are
            ranks, or momentum has been kept of another split of the rows.
    """

    def __init__(self, model: nn.Module, direction: Callable[[nn.Module], Direction]) -> None:
        self.model, self.ranks = model, Ranks.here()
        self.direction = direction(model)
        self.facts = facts_of(self.direction)
        self.parameters = list(model.parameters())
        self.owners = Owners(self.ranks)
        self.split: list[int] = []
        if isinstance(self.direction, Kronecker):
            require_moments_alone(self.direction)
            self.direction.work = self.owners
            if self.direction.sampler is not None:
                self.direction.sampler = OwnSamples(self.direction.sampler, self.owners)
        elif not is_mean(self.direction):
            raise TypeError(
                f"{type(self.direction).__name__} is no mean over rows: ranks that have some each cannot write what "
                "one that has all of them writes; use an exact gradient, Relative, or one of the Kronecker family"
            )
        self.ranks.sent_(self.parameters, 0)

    def __call__(self, batch: Batch, mark: Mark = no_mark) -> Tensor | None:
        own, rows = self.ranks.part(batch), self.ranks.rows(batch)
        share = terms_of(self.model, own) / terms_of(self.model, batch)
        self._keep_split(rows)
        self.owners.rows, self.owners.share = rows, share
        if isinstance(self.direction, Kronecker):
            self.owners.turn = self.direction.steps
        loss = self.direction(own, mark)
        found = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if any(gradient.requires_grad for gradient in found):
            raise ValueError("gradients that have a graph cannot be summed over ranks: set direction.graph=false")
        if loss is not None:
            loss = loss.detach().clone()
        self.ranks.total_(found if loss is None else [*found, loss], share)
        mark("gradient")
        return loss

    def work_of(self, rank: int, batch: Batch) -> Work:
        """Say what a rank has of the step; of its layers after the first."""
        owned = tuple(layer for layer, owner in enumerate(self.owners.owners) if owner == rank)
        return Work(self.ranks.rows(batch)[rank], owned)

    def state_dict(self) -> StateDict:
        """Return this rank's own: momentum is of its rows, and moments of squares are its layers' alone."""
        place = {"rank": self.ranks.rank, "world": self.ranks.world, "split": self.split}
        return {**place, "direction": self.direction.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Load what this rank has saved.

        Raises:
            ValueError: another one has, or one of another number of ranks.
        """
        saved, here = (state["rank"], state["world"]), (self.ranks.rank, self.ranks.world)
        if saved != here:
            raise ValueError(
                f"this state is that of rank {saved[0]} of {saved[1]}, and this is rank {here[0]} of {here[1]}: "
                "go on with as many ranks, each with its own"
            )
        self.direction.load_state_dict(state["direction"])
        self.split = [*state["split"]]

    def _keep_split(self, rows: list[int]) -> None:
        """See that ranks whose momentum is of their own rows always have the same shares of them."""
        if not (isinstance(self.direction, WithMomentum) and self.direction.momentum):
            return
        even = len({*rows}) == len({*self.split}) == 1
        if self.split and rows != self.split and not even:
            raise ValueError(
                f"each rank keeps the momentum of its own rows, of {sum(self.split)} a batch, and a batch of "
                f"{sum(rows)} has other shares for {self.ranks.world} ranks: leave it out, or take multiples of them"
            )
        self.split = rows


def require_moments_alone(direction: Kronecker[Any]) -> None:
    """See that a direction's rows enter by its moments alone, which ranks can share, and linearly into what it writes.

    Raises:
        TypeError: it has a way of its own to take them in, to invert or to write.
        ValueError: its statistics are of some of the rows, which ranks would choose each by itself.
    """
    kind, family = type(direction), Kronecker
    alike = (kind.apply, kind.observe, kind._invert) == (family.apply, family.observe, family._invert)
    alike = alike and kind.write in (family.write, WithMomentum.write)
    if not alike or isinstance(direction, LearnsAfterwards):
        raise TypeError(
            f"{kind.__name__} takes more of its rows than second moments, which ranks do not share yet: "
            "use KFAC, FOOF, TNT, Shampoo or MiniBlock"
        )
    if direction.share < 1:
        raise ValueError(f"ranks share statistics of all rows: set statistics_share=1, got {direction.share}")
