"""What a record says of a step's work: how it grows, and which share of the time each order of growth takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from stepscale.bench.records.operations import CUBIC, UNKNOWN_ORDER, Kind, inexact
from stepscale.bench.records.schema import Counts, Record, Timing

HOST = 0  # the order under which what is no operation is told: it does not grow


def figures(counts: Counts, timing: Timing, dim: int, step_s: float) -> dict[str, object]:
    """Return the columns of a cell that its counts give."""
    found: dict[str, object] = {
        "flops": counts.flops,
        "limit_flops": counts.limit_flops or None,
        "operations": counts.operations,
        "synchronisations": counts.synchronisations,
        "uncounted": _names(kind for kind in counts.kinds if kind.uncounted) or ", ".join(counts.uncounted) or None,
        "gflop_per_s": counts.flops / step_s * 1e-9,
    }
    if counts.second_dim is None:  # nothing is known of how it grows
        return found
    by_order: dict[int, float] = defaultdict(float)
    for kind, calls in zip(counts.kinds, counts.calls, strict=True):
        if kind.flops:
            by_order[kind.order] += calls * kind.flops
    shares = shares_of(timing)
    return found | {
        "order_flops": dict(by_order),
        "flop_exponent": _growth(counts, dim),
        "uncounted": _names(kind for kind in counts.kinds if is_unknown(kind)),
        "cubic_operations": _names(kind for kind in counts.kinds if kind.order >= CUBIC),
        "inexact": _names(kind for kind in counts.kinds if kind.exponent is not None and inexact(kind.exponent)),
        "shares": shares,
        "cubic_share": cubic_share(counts, timing),
    }


def shares_of(timing: Timing) -> dict[int, float] | None:
    """Return the share of the untraced step in work of each order, medians over blocks; None where it was not traced.

    What is left, Python and the calls of operations, does not grow, and is told with what does not either.
    """
    if timing.traced is None:
        return None
    steps = [timing.blocks.step_s[block] for block in timing.traced.block]
    found = {
        order: median(s / step for s, step in zip(seconds, steps, strict=True))
        for order, seconds in timing.traced.order_s.items()
    }
    found[HOST] = found.get(HOST, 0.0) + max(0.0, 1 - sum(found.values()))
    return found


def cubic_share(counts: Counts, timing: Timing) -> float | None:
    """Return the share of the step in work of order 3 and above: 0 where there is none by count; None where unknown."""
    if not any(kind.order >= CUBIC or is_unknown(kind) for kind in counts.kinds):
        return 0.0
    if timing.traced is None:
        return None
    steps = [timing.blocks.step_s[block] for block in timing.traced.block]
    cubic = [seconds for order, seconds in timing.traced.order_s.items() if order >= CUBIC]
    return median(sum(parts) / step for *parts, step in zip(*cubic, steps, strict=True)) if cubic else 0.0


def is_unknown(kind: Kind) -> bool:
    """Whether an operation does work of which it is not known how it grows."""
    return kind.order == UNKNOWN_ORDER and (kind.uncounted or bool(kind.flops) or bool(kind.elements))


def _growth(counts: Counts, dim: int) -> float | None:
    """Return d log FLOPs / d log dim; None of a step that does less at the larger dim: its work goes by the data."""
    if not counts.flops or not counts.second_flops or counts.second_dim is None:
        return None
    found = math.log(counts.flops / counts.second_flops) / math.log(dim / counts.second_dim)
    return found if found >= 0 else None


def _names(kinds: Iterable[Kind]) -> str | None:
    return ", ".join(sorted({kind.name for kind in kinds})) or None


def operations(record: Record) -> list[dict[str, object]] | None:
    """Return a row for each kind of operation of a step: its shapes, calls a step, order, and milliseconds a step.

    None where they were not timed.
    """
    if record.counts is None or record.timing is None or record.timing.traced is None:
        return None
    return [
        {
            "operation": kind.name,
            "shapes": " · ".join("×".join(map(str, shape)) for shape in kind.shapes[:3]),
            "calls": calls,
            "order": kind.order,
            "ms": 1e3 * seconds,
        }
        for kind, calls, seconds in zip(
            record.counts.kinds, record.counts.calls, record.timing.traced.kind_s, strict=True
        )
    ]
