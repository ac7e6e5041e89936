"""The operations of a step as plain data: logged in one process, used in another, kept in records."""

from __future__ import annotations

from msgspec import Struct

from stepscale.bench.records.ranges import Amount, Finite, Size, Whole

UNKNOWN_ORDER = -1
WHOLE = 0.1  # how far an exponent may be from the order that it is
CUBIC = 3  # work of this order and above is what a step is judged by


class Kind(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Operations that are alike, and how their work grows with dim: its FLOPs, or else the elements it touches."""

    name: str
    shapes: list[list[Whole]]
    flops: Amount | None = None  # of one; None of an operation that is no matrix operation
    elements: Whole = 0  # touched by one
    exponent: Finite | None = None  # d log work / d log dim; None where it is not known
    uncounted: bool = False  # a matrix operation without a rule for its FLOPs

    @property
    def order(self) -> int:
        """The exponent's nearest whole number."""
        return UNKNOWN_ORDER if self.exponent is None or self.uncounted else max(0, round(self.exponent))


class PeriodLog(Struct, kw_only=True, omit_defaults=True):
    """The operations of one period of a step, in their order."""

    period: Size  # steps, the update's own period included
    settled: Whole = 0  # steps before the work repeats, whole periods
    regular: bool = True  # whether the work repeats after the period, as far as it was watched
    lengths: list[Whole]  # operations of each step
    sequence: list[Whole]  # the kind of each operation
    kinds: list[Kind]
    synchronisations: Amount  # a step
    second_dim: Size | None = None  # at which it was logged too
    second_flops: Amount | None = None  # a step there
    products: list[tuple[str, tuple[Whole, Whole, Whole]]] = []  # distinct ones: number type, m, k, n: [m, k] × [k, n]

    def __post_init__(self) -> None:
        if not self.lengths or sum(self.lengths) != len(self.sequence):
            raise ValueError("the steps' lengths do not add up to the operations")
        if not all(kind < len(self.kinds) for kind in self.sequence):
            raise ValueError("an operation is of no kind")


class Operand(Struct, frozen=True):
    """A tensor without its numbers."""

    memory: int  # the stretch it lies in; -1 - k is the model's k-th parameter
    offset: int  # elements
    shape: list[int]
    stride: list[int]  # elements
    dtype: str  # float32, for example
    device: str  # cpu or cuda: a generator's state may stay on the host


Argument = Operand | list[int | bool] | float | int | bool | str | None


class ProductSpec(Struct, frozen=True):
    """A product as plain data; msgspec and pickle carry it."""

    operation: str  # with its overload: aten.mm.default
    arguments: list[Argument]
    keywords: dict[str, Argument]
    out: Operand | None  # where the result goes, if the operation takes a place for it
    flops: float


def inexact(exponent: float | None) -> bool:
    """Whether an exponent is no order: what is counted has switched, or rounds with dim."""
    return exponent is None or abs(exponent - round(exponent)) > WHOLE


class StepLog(Struct, kw_only=True, omit_defaults=True):
    """What is known of a step before it is timed, the same for all seeds."""

    period: PeriodLog | None = None
    products: list[ProductSpec] | None = None  # of its model's loss, where the model does not name its own
    notes: dict[str, str] = {}  # what is not known, and why
