"""What each of many ranks does in a step, against closed forms and what is committed."""

import sys

import pytest

from stepscale.bench.cells.time_cell import batches_of
from stepscale.bench.cli.world import command
from stepscale.bench.cli.world.count import CPU, count_rank
from stepscale.bench.config import compose_cell
from stepscale.bench.counting.collectives import fake_ranks
from stepscale.bench.errors import UsageError
from tests.world_counts import OPTIMIZERS, WORLDS, committed, count, counted, job_of

B, L, D = 72, 3, 24  # of the committed counts
P = L * (D**2 + D)
NUMBER = 4  # bytes
PERIOD, OF_TNT = 10, 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_counts_of_ranks_are_those_committed(optimizer: str) -> None:
    expected = [row for row in committed() if row["optimizer"] == optimizer]
    assert counted(optimizer) == expected, "if that is meant, commit to it by make counts-update"


def test_every_committed_count_belongs_to_an_optimizer() -> None:
    assert {row["optimizer"] for row in committed()} == set(OPTIMIZERS)


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_share_backpropagation_and_each_has_its_determinants(world: int) -> None:
    """Rows are shared, the most of a rank rounded up; 2/3 d³ for LU and 2 d³ for W⁻ᵀ are not."""
    found, of_a_row, determinants = count("layerwise", world), 2 * (3 * L - 1) * D**2, L * (2 / 3 + 2) * D**3
    assert found.flops_max == pytest.approx(-(-B // world) * of_a_row + determinants)
    assert found.flops_mean == pytest.approx(B / world * of_a_row + determinants)


def test_owners_share_inversions_until_each_layer_has_one() -> None:
    """All else they have in equal parts; a layer's inversion is Cholesky's, twice, and G⁻¹ [I, 0] A⁻¹."""
    inversion = ((D + 1) ** 3 + D**3 + 2 * D**2 * (D + 1)) / PERIOD
    for world, busiest in ((1, 3), (2, 2), (8, 1)):  # of three layers
        found = count("kfac", world)
        assert found.flops_max - found.flops_mean == pytest.approx((busiest - L / world) * inversion)


def test_bytes_are_those_of_gradients_moments_rows_and_inverses() -> None:
    gradients = NUMBER * P
    moments = NUMBER * L * ((D + 1) ** 2 + D**2)
    made = moments + NUMBER * L * D * (D + 1)  # with G⁻¹ [I, 0] A⁻¹
    rows = NUMBER * 2 * L * D  # what a layer saw, and its gradient: of each row
    assert [count("layerwise", world).bytes for world in WORLDS] == [0, *[gradients + NUMBER] * 3]  # and the loss
    assert count("kfac", 8).bytes == pytest.approx(gradients + moments / PERIOD + made / PERIOD)
    assert count("tnt", 8).bytes == pytest.approx(gradients + B * rows + made / OF_TNT)
    assert count("tnt", 64).bytes == pytest.approx(gradients + 128 * rows + made / OF_TNT)  # two of each rank


def test_ranks_that_count_as_alike_are() -> None:
    job = job_of("kfac", "dim=8", "depth=3", "batch=10")
    batches, _ = batches_of(job, CPU)
    each = [count_rank(job, batches, rank, 4) for rank in range(4)]
    assert each[0].alike == [0, 1, 2, 3]
    five = [count_rank(job, batches, rank, 5) for rank in range(5)]
    assert five[0].alike == [0, 1, 2, 3, 3]
    assert five[3].flops == five[4].flops != five[0].flops
    assert len({tuple(rank.collectives) for rank in five}) == 1


def test_the_command_prints_a_row_of_each_world(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["optimizer=relative,kfac", "dim=8", "batch=10", "world=1,2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:]] == [
        [optimizer, "8", world] for optimizer in ("relative", "kfac") for world in ("1", "2")
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer=kfac", "world=0"], "whole numbers of at least 1, as world=1,2,8,64, got world=0"),
        (["optimizer=relative_fused"], "RelativeSGD is a step without a direction"),
        (["optimizer=kfac", "world=11"], "kfac in a world of 11: .*10 rows leaves some of 11 ranks without any"),
        (["optimizer=natural", "world=2"], "NaturalGradient is no mean over rows"),
    ],
)
def test_what_cannot_be_counted_is_a_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        command.main([*words, "dim=8", "batch=10"])


def test_no_step_is_timed_across_ranks() -> None:
    with pytest.raises(UsageError, match=r"world=2 is unmeasured: .* `stepscale world` counts"):
        compose_cell(["optimizer=kfac", "world=2"])


def test_a_torch_without_fake_ranks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.testing._internal.distributed.fake_pg", None)
    with pytest.raises(UsageError, match="no fake process group"), fake_ranks(0, 2):
        pass
