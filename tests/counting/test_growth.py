"""How the work of an operation grows, against orders that are known from the algebra."""

from collections.abc import Callable

import pytest
import torch

from stepscale.bench.counting import growth
from stepscale.bench.counting.growth import counterparts, exponents, second_dims
from stepscale.bench.counting.operation_counts import Logged, OperationLog
from stepscale.bench.records.operations import inexact

B = 100


def logged(run: Callable[[int], object], dim: int) -> list[Logged]:
    with OperationLog() as log:
        run(dim)
    return log.operations


def growth_of(run: Callable[[int], object], dim: int) -> dict[str, float | None]:
    """Exponent of each operation by its name, from the first second dim."""
    second = next(second_dims(dim))
    here = logged(run, dim)
    found = exponents(here, logged(run, second), dim, second)
    return {operation.name: exponent for operation, exponent in zip(here, found, strict=True)}


@pytest.mark.parametrize(
    ("run", "name", "order"),
    [
        (lambda d: torch.ones(B, d) @ torch.ones(d, d), "mm", 2),
        (lambda d: torch.ones(d, d) @ torch.ones(d, d), "mm", 3),
        (lambda d: torch.ones(d, B) @ torch.ones(B, d), "mm", 2),
        (lambda d: torch.linalg.slogdet(torch.eye(d)), "_linalg_slogdet", 3),
        (lambda d: torch.linalg.inv(torch.eye(d).expand(7, d, d)), "linalg_inv_ex", 3),
        (lambda d: torch.ones(d, d, d).sqrt(), "sqrt", 3),
        (lambda d: torch.ones(d, d) @ torch.ones(d), "mv", 2),
        (lambda d: torch.ones(B, d) * 2, "mul", 1),
        (lambda d: torch.ones(B, B) * d, "mul", 0),
        (lambda d: torch.ones(d, d).t(), "t", 0),
        (lambda d: torch.stack([torch.ones(3, 3) for _ in range(d)]), "stack", 1),
        (lambda d: torch._foreach_add([torch.ones(d) for _ in range(d)], 1), "_foreach_add", 2),
        (lambda d: torch.ones(d, 1, d) @ torch.ones(d, d, d), "bmm", 3),
    ],
)
@pytest.mark.parametrize("dim", [16, 100, 112])  # 100: as many as there are rows, which no shape would tell apart
def test_orders_of_operations(run: Callable[[int], object], name: str, order: int, dim: int) -> None:
    assert growth_of(run, dim)[name] == pytest.approx(order, abs=0.01)


def test_an_operation_that_switches_is_no_order_near_the_switch() -> None:
    """min(B, d) columns: quadratic below the batch, cubic above it, and neither across it."""
    switch = lambda d: torch.ones(d, min(B, d)) @ torch.ones(min(B, d), d)  # noqa: E731
    assert growth_of(switch, 64)["mm"] == pytest.approx(3)
    assert growth_of(switch, 128)["mm"] == pytest.approx(2)
    assert inexact(growth_of(switch, 104)["mm"]), "91 is below the batch and 104 above it"
    here = logged(switch, 104)
    assert exponents(here, logged(switch, 105), 104, 105)[-1] == pytest.approx(2), "the next dim is on the same side"
    assert list(second_dims(104)) == [91, 105, 103]


def test_second_dims_are_near_and_at_least_one() -> None:
    assert next(second_dims(1024)) == 896
    for dim in range(1, 40):
        others = list(second_dims(dim))
        assert dim not in others and all(other >= 1 for other in others) and len(others) >= 2


def test_a_method_that_switches_is_matched_by_what_both_sides_share() -> None:
    here = logged(lambda d: torch.ones(d, d).exp().sqrt() @ torch.ones(d, d), 8)
    there = logged(lambda d: torch.ones(d, d).sqrt().tanh() @ torch.ones(d, d), 8)
    names = [operation.name for operation in here]
    found = counterparts(here, there)
    assert found[names.index("exp")] is None
    for name in ("sqrt", "mm"):
        place = found[names.index(name)]
        assert place is not None and there[place].name == name


def test_what_has_no_counterpart_or_works_there_alone_is_unknown() -> None:
    one = Logged("mm", ((2, 2), (2, 2)), 16.0, 12, False)
    idle = one._replace(flops=0.0)
    assert exponents([one], [], 2, 3) == [None]
    assert exponents([one], [idle], 2, 3) == [None]
    assert exponents([idle], [one], 2, 3) == [None]
    assert exponents([idle], [idle], 2, 3) == [0.0]


def test_loops_that_grow_with_the_dim_are_matched_place_by_place() -> None:
    """Longer than what is matched by its longest runs: each of d rounds has its counterpart in another round."""

    def loop(d: int) -> None:
        for k in range(200 * d):
            torch.ones(d, 3) @ torch.ones(3, d) if k % 2 else torch.ones(d).exp()

    here, there = logged(loop, 16), logged(loop, 14)
    assert len(here) * len(there) > growth.LONGEST**2
    orders = {
        operation.name: exponent
        for operation, exponent in zip(here, exponents(here, there, 16, 14), strict=True)
        if exponent is not None
    }
    assert orders["mm"] == pytest.approx(2) and orders["exp"] == pytest.approx(1)


def test_of_a_long_log_what_is_matched_to_several_shapes_is_not_known() -> None:
    """A tenth of the rounds have another width here than there: where they lie, counterparts are wrong."""

    def loop(d: int, rounds: int, wide: int) -> None:
        for k in range(rounds):
            torch.ones(d * (2 if k < wide else 1)).exp()

    here, there = logged(lambda d: loop(d, 6000, 600), 16), logged(lambda d: loop(d, 5400, 900), 14)
    found = exponents(here, there, 16, 14)
    by_width = {
        width: {
            e and round(e, 9)
            for operation, e in zip(here, found, strict=True)
            if operation.name == "exp" and operation.shapes == ((width,),)
        }
        for width in (16, 32)
    }
    assert by_width == {16: {None}, 32: {1.0}}


def test_operations_of_shapes_that_both_logs_have_do_the_same_work() -> None:
    """In a loop of d rounds matrices of one size stay of order 0, whatever lies between them."""

    def loop(d: int) -> None:
        for k in range(300 * d):
            (torch.ones(4, 4) if k % 3 else torch.ones(d, 4)).exp()

    here, there = logged(loop, 16), logged(loop, 14)
    found = exponents(here, there, 16, 14)
    orders = {operation.shapes[0]: e for operation, e in zip(here, found, strict=True) if operation.name == "exp"}
    assert orders == {(4, 4): 0.0, (16, 4): pytest.approx(1)}
