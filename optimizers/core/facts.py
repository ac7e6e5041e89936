"""What a direction or a step declares of itself, in one value that a wrapper passes on whole."""

from __future__ import annotations

from dataclasses import dataclass

from stepscale.models import LogDet, one_of


@dataclass(frozen=True)
class Facts:
    """What is true of every call of a direction or a step.

    Attributes:
        period: number of calls after which its work repeats.
        settled: number of calls before it does, as where inverses are made more often at first.
        log_det: how it comes by the log-determinant's gradient; None where it does not say. Tables show it.
        writes_in_place: whether it writes over the ``.grad`` it finds, as into ``gradient_of``, of all parameters or of
            none. Any other direction finds them None before each call.
        exact: whether it writes the gradient of the loss itself, neither preconditioned nor estimated. The harness then
            refuses a cosine to that gradient below 1 by more than rounding.
        period_known: whether ``period`` is sure. A step whose update is not torch's own is watched.

    Raises:
        ValueError: ``period`` is below 1, ``settled`` below 0, or ``log_det`` is no ``LogDet``.
    """

    period: int = 1
    log_det: LogDet | None = None
    writes_in_place: bool = False
    exact: bool = False
    period_known: bool = True
    settled: int = 0

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period must be at least 1 step, got {self.period}")
        if self.settled < 0:
            raise ValueError(f"settled must be at least 0 steps, got {self.settled}")
        if self.log_det is not None:  # which may come from a file, as a word
            object.__setattr__(self, "log_det", one_of("log_det", LogDet, self.log_det))


def facts_of(stepping: object) -> Facts:
    """Return the ``facts`` of a direction or a step.

    Raises:
        TypeError: it has none of that type.
    """
    found = getattr(stepping, "facts", None)
    if not isinstance(found, Facts):
        raise TypeError(
            f"{type(stepping).__name__} does not say how its work repeats: give it facts = Facts(period=...), "
            "or those of the direction it wraps (stepscale.optimizers.Facts)"
        )
    return found
