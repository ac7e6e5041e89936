"""A step's work on each of many ranks, counted in one process without a clock."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, cast

import torch

from stepscale.bench.cells.build import build, number_type
from stepscale.bench.cells.job import Job
from stepscale.bench.cells.time_cell import batches_of
from stepscale.bench.counting.collectives import Collective, CollectiveLog, fake_ranks
from stepscale.bench.counting.operation_counts import OperationLog
from stepscale.bench.errors import UsageError
from stepscale.bench.notes import one_line
from stepscale.bench.records.schema import Config
from stepscale.bench.timing.log_period import Found
from stepscale.bench.timing.workload import Workload
from stepscale.models import Batch
from stepscale.optimizers import DataParallel, Paired

SHARED = "stepscale.optimizers.DataParallel"
MEBI = 2**20
CPU = torch.device("cpu")


class RankCount(NamedTuple):
    """What one rank does in a step, the mean over a period."""

    flops: float
    collectives: list[Collective]  # of the whole period
    period: int
    alike: list[int]  # of each rank of the world, the first one that has as much to do


class WorldCount(NamedTuple):
    """What the ranks of a world do in a step, the mean over a period."""

    world: int
    flops_mean: float  # over the ranks
    flops_max: float
    calls: dict[str, float]  # of collectives, by kind
    bytes: float  # of all of them

    @property
    def balance(self) -> float:
        """The busiest rank's FLOPs / the mean rank's: how long the others wait for it."""
        return self.flops_max / self.flops_mean


def shared(config: Config) -> Config:
    """Have ranks share the direction of a cell's optimizer.

    Raises:
        UsageError: it has none.
    """
    optimizer = config["optimizer"]
    if not isinstance(optimizer.get("direction"), dict):
        raise UsageError(
            f"{optimizer.get('_target_')} is a step without a direction, and ranks share directions: "
            "choose an optimizer whose file has one, as optimizer=kfac"
        )
    direction = {"_target_": SHARED, "_partial_": True, "direction": optimizer["direction"]}
    return {**config, "optimizer": {**optimizer, "direction": direction}}


def count_world(job: Job, world: int) -> WorldCount:
    """Count a step on each rank of a world; ranks that have as much to do as another are counted once.

    Raises:
        UsageError: this torch cannot, or the step's direction cannot be shared.
    """
    batches, _ = batches_of(job, CPU)
    first = count_rank(job, batches, 0, world)
    others = sorted({*first.alike} - {0})
    counts = {0: first} | {rank: count_rank(job, batches, rank, world) for rank in others}
    flops = [counts[rank].flops for rank in first.alike]
    calls = Counter(collective.kind for collective in first.collectives)
    return WorldCount(
        world,
        sum(flops) / world,
        max(flops),
        {kind: number / first.period for kind, number in calls.items()},
        sum(collective.bytes for collective in first.collectives) / first.period,
    )


def count_rank(job: Job, batches: list[Batch], rank: int, world: int) -> RankCount:
    """Count a period of a step, after the first, as one rank of a world runs it.

    Raises:
        UsageError: the step says that it cannot be so, or has an operation without a rule.
    """
    with fake_ranks(rank, world):
        torch.manual_seed(job.cell.seed)
        model, step = build(job, CPU, number_type(job.cell.dtype))
        workload = Workload(model, step, batches)
        try:
            workload.run(Found(workload.period, workload.facts.settled, regular=True).start)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(f"{job.cell.optimizer} in a world of {world}: {one_line(error)}") from error
        with OperationLog() as operations, CollectiveLog() as log:
            workload.run(workload.period)
    if operations.uncounted:
        raise UsageError(f"there is no rule for the FLOPs of {', '.join(sorted(operations.uncounted))}")
    direction = cast(DataParallel, cast(Paired, step).direction)
    works = [direction.work_of(other, batches[0]) for other in range(world)]
    return RankCount(
        operations.flops / workload.period, log.collectives, workload.period, [works.index(work) for work in works]
    )
