"""Two processes write what one writes; and what they cannot share is refused."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from stepscale.bench.counting.collectives import fake_ranks
from stepscale.models import Autoencoder
from stepscale.optimizers import EKFAC, KBFGS, KFAC, TNT, DataParallel, NaturalGradient
from stepscale.optimizers.distributed.owners import balanced
from stepscale.optimizers.distributed.ranks import Ranks
from tests.conftest import batch_of, generic_flow
from tests.support.ranks import CASES, collectives, train

ROOT = Path(__file__).parent.parent.parent
needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has written."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.support.ranks", str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), "2"], cwd=ROOT) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@needs_gloo
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_write_what_one_writes(name: str, written: list[dict[str, Any]]) -> None:
    alone = train(CASES[name], lambda direction: direction)
    for rank in written:
        assert len(rank[name]) == len(alone)
        for one, other in zip(alone, rank[name], strict=True):
            assert (one - other).abs().max() < 1e-10 * max(1, one.abs().max())


@needs_gloo
def test_a_rank_inverts_its_own_layers_alone(written: list[dict[str, Any]]) -> None:
    assert [rank["inversions"] for rank in written] == [[3, 2, 2, 2], [3, 1, 1, 1]]


@needs_gloo
def test_ranks_draw_apart_and_then_alike(written: list[dict[str, Any]]) -> None:
    (own, common), (other, same) = (rank["draws"] for rank in written)
    assert (own != other).all()
    assert (common == same).all()


@needs_gloo
def test_two_ranks_that_are_there_call_what_one_of_two_fake_ones_calls(written: list[dict[str, Any]]) -> None:
    with fake_ranks(0, 2):
        counted = collectives("tnt")
    assert {kind for kind, _ in counted} == {"all_gather", "all_reduce", "broadcast"}
    assert [rank["collectives"] for rank in written] == [counted, counted]


def test_the_dearest_layers_are_shared_out_first() -> None:
    """Of costs 2·4³, 2·3³, 2·3³, 2·2³ the first is one rank's, and the next two the other's, who then has less."""
    assert balanced(((2, 2), (3, 3), (4, 4), (3, 3)), 2) == (1, 1, 0, 1)
    assert balanced(((4, 4), (4, 4)), 8) == (0, 1)


def test_parts_of_a_batch_are_all_of_it_once() -> None:
    x = torch.arange(10)
    parts = [Ranks(rank, 4).part(x) for rank in range(4)]
    assert [len(part) for part in parts] == Ranks(0, 4).rows(x) == [3, 3, 2, 2]
    assert torch.equal(torch.cat(parts), x)  # type: ignore[arg-type]


def test_one_process_is_the_direction_itself() -> None:
    model, x = generic_flow(), batch_of(9)
    found = []
    for make in (KFAC, partial(DataParallel, direction=KFAC)):
        torch.manual_seed(1)
        make(model)(x)
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_ranks_cannot_share_is_refused() -> None:
    model = generic_flow()
    with pytest.raises(TypeError, match="NaturalGradient is no mean over rows"):
        DataParallel(model, NaturalGradient)
    for direction in (EKFAC, KBFGS):
        with pytest.raises(TypeError, match=f"{direction.__name__} takes more of its rows than second moments"):
            DataParallel(model, direction)
    writes = type("Writes", (KFAC,), {"write": lambda *_: None})
    with pytest.raises(TypeError, match="Writes takes more"):
        DataParallel(model, writes)
    with pytest.raises(ValueError, match=r"set statistics_share=1, got 0\.5"):
        DataParallel(model, partial(KFAC, statistics="data", statistics_share=0.5))
    with pytest.raises(ValueError, match="2 rows leaves some of 3 ranks without any"):
        Ranks(0, 3).part(batch_of(2))
    state = DataParallel(model, KFAC).state_dict()
    with pytest.raises(ValueError, match="rank 1 of 2, and this is rank 0 of 1"):
        DataParallel(model, KFAC).load_state_dict(state | {"rank": 1, "world": 2})


def test_momentum_of_other_shares_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Autoencoder(5, 4, hidden=[4, 2]).double()
    shared, resumed = (DataParallel(model, partial(TNT, frame="euclidean")) for _ in range(2))
    for one in (shared, resumed):
        monkeypatch.setattr(one, "ranks", Ranks(0, 2))
    shared._keep_split([3, 3])
    shared._keep_split([4, 4])
    resumed.load_state_dict(shared.state_dict())
    for one in (shared, resumed):
        with pytest.raises(ValueError, match="own rows, of 8 a batch, and a batch of 9 has other shares for 2 ranks"):
            one._keep_split([5, 4])
