"""What ranks train, and what each writes: ``python -m tests.support.ranks FOLDER RANK WORLD`` is one of them."""

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from stepscale.bench.counting.collectives import CollectiveLog
from stepscale.models import Autoencoder, Batch, LayerIO, Transformer
from stepscale.optimizers import (
    FOOF,
    KFAC,
    TNT,
    DataParallel,
    Direction,
    Kronecker,
    Layerwise,
    MiniBlock,
    Relative,
    Schedule,
    Shampoo,
    pair,
)
from stepscale.optimizers.distributed.ranks import Ranks
from tests.conftest import batch_of, generic_flow

Make = Callable[[nn.Module], Direction]
STEPS = 7
OFTEN = Schedule(statistics=1, inverse=2, decay=0.9)
DATA: dict[str, Any] = {"statistics": "data", "schedule": OFTEN}
WHOLE: dict[str, Any] = {"frame": "euclidean", "schedule": OFTEN}


class Given:
    """Model samples whose noise is given: of so many rows in turn, each rank its part of them."""

    def __init__(self, flow: Any) -> None:
        self.flow, self.drawn = flow, 0

    def capture_samples(self, ios: list[LayerIO]) -> list[LayerIO]:
        noise = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(self.drawn))
        self.drawn += 1
        return self.flow.capture(self.flow.inverse(Ranks.here().part(noise)))


def given(flow: nn.Module, method: Callable[[nn.Module], Kronecker[Any]]) -> Direction:
    direction = method(flow)
    direction.sampler = Given(flow)
    return direction


class Case(NamedTuple):
    """A model, a direction and the rows of a batch; two ranks share nine as five and four."""

    direction: Make
    model: Callable[[], nn.Module] = generic_flow
    rows: int = 9
    batches: Callable[[int], Batch] = batch_of
    update: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
    restored: bool = False  # whether the step is built anew midway, of what it has saved


def autoencoder() -> nn.Module:
    return Autoencoder(5, 4, hidden=[4, 2]).double()


def language() -> nn.Module:
    return Transformer(4, 1, context=3, symbols=5).double()


def texts(rows: int) -> Batch:
    tokens = torch.randint(0, 5, (rows, 4))
    return tokens[:, :3], tokens[:, 1:]


CASES = {
    "layerwise": Case(Layerwise),
    "layerwise, L-BFGS": Case(Layerwise, autoencoder, update=partial(torch.optim.LBFGS, lr=0.1, max_iter=3)),
    "relative": Case(Relative),
    "kfac": Case(partial(KFAC, **DATA)),
    "kfac, stale": Case(partial(KFAC, log_det="stale", **DATA)),
    "kfac, its momentum": Case(partial(KFAC, momentum=0.5, **DATA)),
    "kfac, samples": Case(partial(given, method=partial(KFAC, schedule=OFTEN))),
    "kfac, a network": Case(partial(KFAC, **WHOLE, statistics="data"), autoencoder),
    "kfac, tokens": Case(partial(KFAC, **WHOLE, statistics="data", rest="gradient"), language, batches=texts),
    "kfac, restored": Case(partial(KFAC, **DATA), restored=True),
    "foof": Case(partial(FOOF, schedule=OFTEN)),
    "tnt": Case(partial(TNT, **DATA)),
    "tnt, dense": Case(partial(TNT, form="dense", **DATA)),
    "tnt, samples": Case(partial(given, method=partial(TNT, schedule=OFTEN))),
    "tnt, restored": Case(partial(TNT, **DATA), restored=True),
    "shampoo": Case(partial(Shampoo, schedule=OFTEN)),
    "shampoo, many rows": Case(partial(Shampoo, schedule=OFTEN), rows=31),
    "shampoo, a network": Case(partial(Shampoo, **WHOLE), autoencoder),
    "mini_block, tokens": Case(partial(MiniBlock, **WHOLE, rest="gradient"), language, batches=texts),
}


def train(case: Case, shared: Callable[[Make], Make]) -> list[Tensor]:
    """Return every gradient of every step, and the parameters at the end."""
    torch.manual_seed(0)
    model = case.model()
    step, written = pair(model, shared(case.direction), case.update), list[Tensor]()
    for k in range(STEPS):
        if case.restored and k == 3:
            saved = deepcopy(step.state_dict())
            step = pair(model, shared(case.direction), case.update)
            step.load_state_dict(saved)
        step(case.batches(case.rows))
        written += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [*written, *(parameter.detach() for parameter in model.parameters())]


def on_ranks(direction: Make) -> Make:
    return partial(DataParallel, direction=direction)


def inversions(rank: int) -> list[int]:
    """Count the layers that a rank inverts in each of four steps; every step inverts."""
    model, counted = generic_flow(depth=3), [0] * 4
    parallel = DataParallel(model, partial(KFAC, statistics="data", schedule=Schedule(1, 1)))
    made = parallel.direction.applied_to
    for k in range(4):

        def noted(*layer: Any, k: int = k) -> Any:
            counted[k] += 1
            return made(*layer)

        parallel.direction.applied_to = noted
        parallel(batch_of(9))
    return counted


def draws() -> tuple[Tensor, Tensor]:
    """Draw as a rank does for itself, then as all do."""
    torch.manual_seed(3)
    with Ranks.here().drawing("test", 0):
        own = torch.randn(4)
    return own, torch.randn(4)


def collectives(name: str) -> list[tuple[str, int]]:
    """Kind and bytes of each collective of a training."""
    with CollectiveLog() as log:
        train(CASES[name], on_ranks)
    return [tuple(one) for one in log.collectives]


def main(folder: Path, rank: int, world: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    found: dict[str, Any] = {name: train(case, on_ranks) for name, case in CASES.items()}
    found |= {"inversions": inversions(rank), "draws": draws(), "collectives": collectives("tnt")}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
