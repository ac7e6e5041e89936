"""What a step's time goes to: successive steps traced by the stamps of their marks."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from stepscale.bench.machine.clock import Clock, Stamp
from stepscale.bench.records.schema import UNMARKED, StepClass
from stepscale.bench.timing.workload import Workload

START = ""
Phases = dict[str, float]


def trace(workload: Workload, clock: Clock, steps: int) -> list[tuple[int, Phases]]:
    """Position in the period and seconds of each phase, for successive steps from the start of a period."""
    stamps: list[tuple[int, str, Stamp]] = []
    for k in range(steps):
        position = k % workload.period
        stamps.append((position, START, clock.stamp()))
        if workload.compiled is not None:  # it is one piece: marked, it would run as written
            workload.run(1)
        else:
            workload.run(1, lambda phase: stamps.append((position, phase, clock.stamp())))  # noqa: B023 - run now
        stamps.append((position, UNMARKED, clock.stamp()))
    clock.synchronize()
    found: list[tuple[int, Phases]] = []
    for (_, _, start), (position, phase, stop) in zip([stamps[0], *stamps], stamps, strict=False):
        if phase == START:
            found.append((position, {}))
        elif (seconds := clock.seconds(start, stop)) > 0:
            phases = found[-1][1]
            phases[phase] = phases.get(phase, 0.0) + seconds
    return found


def by_class(traced: list[tuple[int, Phases]], classes: list[list[int]], period: int) -> list[StepClass]:
    """Median seconds of each phase over the traced steps of each class, and the class's share of a period."""
    found = []
    for positions in classes:
        members = [phases for position, phases in traced if position in positions]
        seconds = defaultdict(list)
        for phases in members:
            for name, value in phases.items():
                seconds[name].append(value)
        phases_s = {name: float(np.median(values)) for name, values in seconds.items()}
        found.append(StepClass(positions, len(positions) / period, len(members), phases_s))
    return found
