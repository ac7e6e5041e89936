"""What the optimizers and the harness ask of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard, TypeVar

from torch import Tensor

from stepscale.models.batch import Batch
from stepscale.models.captured_layer import LayerIO, Tangents


class HasLoss(Protocol):
    """What every model offers."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean of the negative objective over the batch, in its unit (``Objective``): a scalar."""
        ...


class Captures(Protocol):
    """A model that says what its affine layers saw; for the directions that precondition a layer."""

    def capture(self, batch: Batch) -> list[LayerIO]:
        """Forward and backward pass of the determinant-free part of the loss, first layer first.

        It is called under ``torch.no_grad``; one that uses autograd opens ``torch.enable_grad`` itself.
        """
        ...


class InThePlane(Protocol):
    """A Gaussian that can be shown beside the distribution that it approximates."""

    def plane(self, batch: Batch, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of that distribution, ``[count, 2]``, and the Gaussian's mean and covariance in the same plane."""
        ...


class CapturesSamples(Protocol):
    """A model that is captured on its own samples; for the true Fisher matrix."""

    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        """As many samples of the model, captured; given inputs keep theirs and draw targets."""
        ...


class BernoulliUnits(Protocol):
    """A model all of whose units are Bernoulli given what they see; for their exact Fisher matrix, a block a unit."""

    def capture_units(self, ios: list[LayerIO]) -> list[tuple[Tensor, Tensor]]:
        """What each captured layer sees, drawn, ``[rows, dim_in]``, and its units' chances, ``[rows, dim_out]``."""
        ...


class DrawsTargets(Protocol):
    """A model that has no ``capture`` and draws targets; for the true Fisher matrix of what is captured by hooks."""

    def sampled_loss(self, batch: Batch) -> Tensor:
        """``loss`` of the batch's inputs, with targets drawn from the model: its gradient is that of the drawn ones."""
        ...


class ExpectsTargets(Protocol):
    """A model whose loss is linear in its targets, up to what no parameter changes; for divergences between models.

    KL(p ‖ q) of two of them, given a batch's inputs, then has the gradient of q's loss at the targets that p expects.
    """

    def with_expected_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch's inputs, with the expectation of their targets, ``[batch, outputs]``: a batch to train on."""
        ...


class CountsTerms(Protocol):
    """A model whose loss is a mean of other terms than a batch's rows, as of tokens."""

    def loss_terms(self, batch: Batch) -> int:
        """How many terms the loss of a batch is the mean of."""
        ...


class FisherRoots(Protocol):
    """A model that multiplies directions by a root of its Fisher matrix; for the exact quadratic model."""

    def fisher_roots(self, ios: list[LayerIO], directions: Sequence[Tangents]) -> list[Tensor]:
        """X v for each direction v, ``[batch, …]``, with XᵀX / batch the true Fisher matrix at the captured inputs."""
        ...


class FisherTimes(Protocol):
    """A model that multiplies a direction by its Fisher matrix; for solving with it."""

    def fisher_times(self, samples: list[LayerIO], tangents: Tangents) -> list[LayerIO]:
        """F v as captured rows without log-determinants, so that ``deltaᵀ a / B`` is each layer's part of it.

        ``samples`` are what ``capture_samples`` returned, once for all products that are to be of one matrix.
        """
        ...


class TracksLogProb(Protocol):
    """A model whose log-likelihood follows from a captured batch; for tracking it on every step."""

    def captured_log_prob(self, ios: list[LayerIO]) -> Tensor:
        """O(L B d): log p of a captured batch less its log-determinants, ``[batch]``."""
        ...


class Invertible(Protocol):
    """A model that maps inputs to noise of a known density, row by row; for the full-Jacobian direction."""

    def __call__(self, x: Tensor) -> Tensor:
        """As every ``torch.nn.Module``, by ``forward``."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to noise, ``[batch, dim]``."""
        ...

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the noise, ``[batch]``."""
        ...


class HasJacobians(Protocol):
    """A model that has the Jacobian of each row by a faster way than automatic differentiation."""

    def jacobians(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map inputs to noise ``[batch, dim]``, and give its ∂z/∂x ``[batch, dim, dim]``; differentiable."""
        ...


class HasLogProb(Protocol):
    """A model with a density of single rows; for pictures."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of each row in nats, ``[batch]``."""
        ...


class Samples(Protocol):
    """A model that can be drawn from; for pictures."""

    def sample(self, n: int) -> Tensor:
        """Draw ``[n, dim]`` from the model."""
        ...


class HasProducts(Protocol):
    """A model that names the matrix products of the limit; of any other they are those that its loss executes."""

    def products(self, batch: int) -> list[tuple[int, int, int]]:
        """Shapes (m, k, n) of the limit's products ``[m, k] × [k, n]``: the least that an exact step can do with.

        Two that have the right-hand matrix in common, and neither of which waits for the other, are one of as many rows
        as both: so they run faster, and a step faster than its limit makes the limit wrong.
        """
        ...


class Model(
    HasLoss,
    Captures,
    CapturesSamples,
    BernoulliUnits,
    DrawsTargets,
    ExpectsTargets,
    CountsTerms,
    FisherRoots,
    FisherTimes,
    TracksLogProb,
    Invertible,
    HasJacobians,
    HasLogProb,
    Samples,
    InThePlane,
    HasProducts,
    Protocol,
):
    """All that a model may offer; only ``loss`` is needed, the rest opens more directions to it.

    Implementations are ``torch.nn.Module``s. What the loss is, a model says in ``objective``, an ``Objective``. A
    direction that needs a part the model lacks refuses with a ``TypeError`` naming that part
    (``stepscale.optimizers.require``).
    """


Part = TypeVar("Part")


def lacking(model: object, part: type) -> list[str]:
    """Name the methods of a protocol that a model does not have.

    By name and not by ``isinstance``, which would miss what a wrapper such as ``torch.compile``'s passes on, and would
    not say which is missing.
    """
    names = [name for base in part.__mro__ for name in vars(base) if not name.startswith("_")]
    return [name for name in names if not callable(getattr(model, name, None))]


def offers(model: object, part: type[Part]) -> TypeGuard[Part]:
    """Whether a model has every method of a protocol."""
    return not lacking(model, part)
