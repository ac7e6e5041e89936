"""Steps whose work is known by order, and the table of cells that a run of them leaves: the truth of the shares.

A simulated machine multiplies at a rate that rises with d. Every class of work (host, vectors, products, cubic) of
every process is off by a factor of its own. Seconds and FLOPs are of one step, amortised over its period.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from stepscale.bench.records.schema import AXES, Cell
from stepscale.bench.records.tables import FACTS, FIGURES
from tests.support.synthetic import RATE, cell, limit_seconds

LARGEST = 1000  # the dim at which a step has the share of cubic work it is named after
LAUNCHES_S, HOST_S, VECTORS_S = 7e-6, 150e-6, 5e-8  # of the limit; of a step; of a step, times d
DIMS = [64, 128, 256, 512, 1000]  # the default sweep's


class Step(NamedTuple):
    """A step of known work."""

    share: float = 0.0  # of cubic work at dim ``LARGEST``
    speeding_up: float = 0.0  # dim at which cubic work has half its final rate, in that of products; of an LU 700
    cliff: float = math.inf  # dim above which its products, and not the limit's, leave a cache, for half their rate
    products: float = 1.2  # FLOPs of its products, in the limit's

    def seconds(self, dim: int) -> np.ndarray:
        """Seconds of the work of order 0 to 3, ``[4]``."""
        limit, cubic = self.flops(dim)[2] / _rate(dim), self.flops(dim)[3] / _rate(dim)
        missed = 1 + 1 / (1 + math.exp((self.cliff - dim) / 50))
        return np.array([HOST_S, VECTORS_S * dim, limit * missed, cubic * (1 + self.speeding_up / dim)])

    def flops(self, dim: int) -> np.ndarray:
        """FLOPs of order 0 to 3, ``[4]``."""
        quadratic = self.products * limit_seconds(LARGEST) * RATE
        other = HOST_S + VECTORS_S * LARGEST + quadratic / _rate(LARGEST)
        cubic = self.share / (1 - self.share) * other * _rate(LARGEST) / (1 + self.speeding_up / LARGEST)
        return np.array([0, 0, quadratic * (dim / LARGEST) ** 2, cubic * (dim / LARGEST) ** 3])

    def cubic_share(self, dim: int) -> float:
        """The truth."""
        return float(self.seconds(dim)[3] / self.seconds(dim).sum())


# what each must be called
KINDS = {
    "quadratic": (Step(), "no cubic work"),
    "quadratic, with more products": (Step(products=2.0), "no cubic work"),
    "quadratic, own cache cliff": (Step(cliff=400), "no cubic work"),
    "mixed, 5 % cubic": (Step(0.05), "partly cubic"),
    "mixed, 15 % cubic": (Step(0.15), "partly cubic"),
    "periodic: an inverse every 10th step": (Step(0.45), "cubic"),
    "cubic at the products' rate": (Step(0.77), "cubic"),
    "LU speeding up with d": (Step(0.85, speeding_up=700), "cubic"),
}
STEPS = {name: step for name, (step, _) in KINDS.items()}


def _rate(dim: int) -> float:
    """FLOP/s of a product."""
    return RATE / (1 + 60 / dim)


def table(
    steps: Mapping[str, Step],
    *,
    dims: list[int] = DIMS,
    seeds: int = 2,
    noise: float = 0.03,
    block_noise: float = 0.02,
    drift: float = 0.1,
    blocks: int = 8,
    turns: bool = True,
    rng: np.random.Generator | None = None,
    **axes: object,
) -> pd.DataFrame:
    """Make the table of cells of a run.

    Args:
        steps: by optimizer.
        dims: of the sweep.
        seeds: processes a cell.
        noise: sd of the log of the time of one class of work relative to another's, from process to process: each
            class, and the limit, has a lognormal factor of sd noise / √2. So the log odds of a share, and the log of
            a step / limit that is all products, have the sd ``noise``.
        block_noise: sd of every class of work from block to block; traced and untraced blocks vary apart.
        drift: sd of the machine's speed from round to round, which all cells of a round share if they take turns.
        blocks: of each process.
        turns: whether the cells of a dim and seed take turns.
        rng: of the noise.
        axes: other than the default.
    """
    rng = rng or np.random.default_rng(11)
    shape = (len(steps), len(dims), seeds)
    exact = np.array([[step.seconds(dim) for dim in dims] for step in steps.values()])[:, :, None, None]
    own = exact * _lognormal(rng, noise / math.sqrt(2), (*shape, 1, 4))
    speed = _lognormal(rng, drift, (1 if turns else len(steps), *shape[1:], blocks))
    untraced, traced = (own * _lognormal(rng, block_noise, (*shape, blocks, 4)) for _ in range(2))
    step_s = untraced.sum(axis=-1)
    limit_s = np.array([LAUNCHES_S + limit_seconds(dim) * RATE / _rate(dim) for dim in dims])[:, None, None]
    limit_s = limit_s * _lognormal(rng, noise / math.sqrt(2), (*shape, 1))
    limit_s = limit_s * _lognormal(rng, block_noise, (*shape, blocks))
    shares = np.median(traced / step_s[..., None], axis=-2)
    shares[..., 0] = 1 - shares[..., 1:].sum(axis=-1)
    figures = {
        "round_ms": 1e3 * step_s * speed,
        "ratio": np.median(step_s / limit_s, axis=-1),
        "limit_ms": 1e3 * np.median(limit_s * speed, axis=-1),
        "shares": shares,
    }
    rows = [
        _row(cell(name, dim, seed, **axes), step, {key: found[o, d, seed] for key, found in figures.items()}, turns)
        for o, (name, step) in enumerate(steps.items())
        for d, dim in enumerate(dims)
        for seed in range(seeds)
    ]
    columns = [*AXES, *FACTS, *FIGURES]
    return pd.DataFrame(rows, columns=columns).astype({"contended": bool, "launch_bound": bool})


def _row(of: Cell, step: Step, found: dict[str, np.ndarray], turns: bool) -> dict[str, object]:
    flops, cubic = step.flops(of.dim), step.share > 0
    beyond = step.flops(of.dim + 1)
    return {axis: getattr(of, axis) for axis in AXES if axis != "machine"} | {
        "machine": "simulated", "status": "ok", "task": "time", "clock": "cpu",
        "contended": False, "launch_bound": False, "looks": 1,
        "round_ms": found["round_ms"].tolist(), "step_ms": float(np.median(found["round_ms"])),
        "ratio": float(found["ratio"]), "limit_ms": float(found["limit_ms"]),
        "limit_flops": limit_seconds(of.dim) * RATE, "flops": flops.sum(),
        "turns": f"dim {of.dim}, seed {of.seed}" if turns else None,
        "shares": dict(enumerate(found["shares"].tolist()[: 4 if cubic else 3])),
        "cubic_share": float(found["shares"][3]) if cubic else 0.0,
        "order_flops": {2: flops[2], 3: flops[3]} if cubic else {2: flops[2]},
        "flop_exponent": math.log(beyond.sum() / flops.sum()) / math.log1p(1 / of.dim),
        "cubic_operations": "lu_factor_ex, lu_solve" if cubic else None,
    }  # fmt: skip


def _lognormal(rng: np.random.Generator, sd: float, shape: tuple[int, ...]) -> np.ndarray:
    return np.exp(sd * rng.standard_normal(shape))
