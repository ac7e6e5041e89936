"""The time of each operation of a step, one by one, as the dispatcher meets them."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode

from stepscale.bench.counting.operation_counts import compiled_here
from stepscale.bench.machine.clock import Clock, name_of
from stepscale.bench.records.operations import PeriodLog
from stepscale.bench.records.schema import Traced
from stepscale.bench.timing.log_period import kinds_by_step
from stepscale.bench.timing.profiler import spans, watching
from stepscale.bench.timing.workload import Workload
from stepscale.optimizers import no_mark

CALLS = 2000  # of an operation that does nothing, to learn what timing one costs
TAG = "stepscale "  # of the ranges by which a profiler finds kernels
LOST = 0.02  # of the kernels' time, for which no operation need be known
Nanoseconds = Callable[[], int]
HOST: dict[str, Nanoseconds] = {"cpu": time.process_time_ns, "wall": time.perf_counter_ns}


class TimedOperations(TorchDispatchMode):
    """While active, notes the nanoseconds of each operation, by a clock of the host's."""

    def __init__(self, now: Nanoseconds) -> None:
        super().__init__()
        self.now = now
        self.ns: list[int] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        now = self.now
        began = now()
        result = func(*args, **(kwargs or {}))
        self.ns.append(now() - began)
        return result


class TaggedOperations(TorchDispatchMode):
    """While active, has a profiler know each operation's kernels by the step's position and the operation's kind."""

    def __init__(self, position: int, kinds: Sequence[int]) -> None:
        super().__init__()
        self.position, self.kinds, self.met = position, kinds, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        kind = self.kinds[self.met] if self.met < len(self.kinds) else len(self.kinds)
        self.met += 1
        with record_function(f"{TAG}{self.position} {kind}"):
            return func(*args, **(kwargs or {}))


class OperationTimes:
    """Times the operations of a workload that was logged, block by block.

    Args:
        workload: whose steps are as logged.
        log: its period.
        clock: that times its blocks; on a CUDA device kernels are timed.
        classes: positions of the period whose steps do the same work.
    """

    def __init__(self, workload: Workload, log: PeriodLog, clock: Clock, classes: Sequence[Sequence[int]]) -> None:
        if workload.compiled is not None or compiled_here():
            raise RuntimeError("the step is compiled: timed by operation, it would run as it is written")
        self.workload, self.log, self.classes = workload, log, classes
        self.by_step, self.synchronize = kinds_by_step(log), clock.synchronize
        self.now = HOST.get(name_of(clock))
        self.cost_ns = 0.0 if self.now is None else cost_of_timing(self.now)
        self.blocks: list[int] = []
        self.seconds: list[np.ndarray] = []  # a step, in each kind

    @property
    def on_host(self) -> bool:
        """Whether the host's calls are timed, and not a device's kernels."""
        return self.now is not None

    def run(self, steps: int, block: int | None) -> None:
        """Time so many steps from the start of a period; None for a block that is thrown away.

        Steps of a class are taken as alike, and each class counts by its share of the period.

        Raises:
            RuntimeError: a step ran other operations than were logged.
        """
        totals = np.zeros((self.workload.period, len(self.log.kinds)))
        counts = np.zeros(self.workload.period)
        if self.now is None:
            self._kernels(steps, totals, counts)
        else:
            self._calls(steps, self.now, totals, counts)
        if block is not None:
            shares = [(list(positions), len(positions) / len(counts)) for positions in self.classes]
            found = [totals[at].sum(0) / counts[at].sum() * share for at, share in shares]
            self.blocks.append(block)
            self.seconds.append(np.sum(found, axis=0))

    def found(self) -> Traced:
        """Return the seconds of all blocks by order, and the median seconds of each kind."""
        seconds = np.array(self.seconds)
        orders = np.array([kind.order for kind in self.log.kinds])
        by_order = {int(order): seconds[:, orders == order].sum(1).tolist() for order in np.unique(orders)}
        return Traced(self.blocks, by_order, np.median(seconds, axis=0).tolist())

    def _calls(self, steps: int, now: Nanoseconds, totals: np.ndarray, counts: np.ndarray) -> None:
        """Add up the seconds of so many steps by position and kind, as the host's calls take them."""
        for position, kinds in self._positions(steps):
            with TimedOperations(now) as timed:
                self.workload.run(1, no_mark)
            require_as_logged(len(timed.ns), len(kinds))
            own = np.maximum(0, np.array(timed.ns, dtype=float) - self.cost_ns)
            totals[position] += np.bincount(np.array(kinds, dtype=int), own, totals.shape[1]) * 1e-9
            counts[position] += 1

    def _kernels(self, steps: int, totals: np.ndarray, counts: np.ndarray) -> None:
        """Add up the seconds of so many steps by position and kind, as the device's kernels take them.

        Raises:
            RuntimeError: the profiler sees no kernel, or not which operations most of them are of.
        """
        with watching(self.workload.device) as seen:
            for position, kinds in self._positions(steps):
                with TaggedOperations(position, kinds) as tagged:
                    self.workload.run(1, no_mark)
                require_as_logged(tagged.met, len(kinds))
                counts[position] += 1
            self.synchronize()
        kernels, ranges = spans(seen)
        tags = sorted((span.stream, span.start_ns, span) for span in ranges if span.name.startswith(TAG))
        starts, lost_ns = [tag[:2] for tag in tags], 0
        for kernel in kernels:
            place = bisect_right(starts, (kernel.stream, kernel.start_ns)) - 1
            tag = tags[place][2] if place >= 0 else None
            if tag is None or tag.stream != kernel.stream or kernel.start_ns > tag.stop_ns:
                lost_ns += kernel.ns
            else:
                position, kind = map(int, tag.name.removeprefix(TAG).split())
                totals[position, kind] += 1e-9 * kernel.ns
        require_found(sum(kernel.ns for kernel in kernels), lost_ns)

    def _positions(self, steps: int) -> Iterator[tuple[int, list[int]]]:
        """Yield, before each step, its position in the period and the kinds of its operations."""
        for _ in range(steps):
            position = self.workload.position % self.workload.period
            yield position, self.by_step[position]


def require_as_logged(found: int, logged: int) -> None:
    """Raise a ``RuntimeError`` where a step has run other operations than were logged."""
    if found != logged:
        raise RuntimeError(f"a step ran {found} operations where {logged} were logged")


def require_found(whole_ns: int, lost_ns: int) -> None:
    """Raise a ``RuntimeError`` where no kernel was seen, or for too much of the time of kernels no operation."""
    if not whole_ns:
        raise RuntimeError("the profiler sees no kernel")
    if lost_ns > LOST * whole_ns:
        raise RuntimeError(f"of {lost_ns / whole_ns:.0%} of the kernels' time no operation is known")


def cost_of_timing(now: Nanoseconds) -> float:
    """Return the nanoseconds that timing adds to an operation: those of one that does nothing, timed, less untimed."""
    nothing = torch.zeros(1)
    nothing.detach()
    began = now()
    for _ in range(CALLS):
        nothing.detach()
    bare = now() - began
    with TimedOperations(now) as timed:
        for _ in range(CALLS):
            nothing.detach()
    return max(0.0, float(np.median(timed.ns)) - bare / len(timed.ns))  # torch 2.5 detaches in two operations
