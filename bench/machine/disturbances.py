"""What disturbs a measurement on this machine, as far as its system tells. Reads only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from stepscale.bench.machine import control_group
from stepscale.bench.machine.device import first_gpu
from stepscale.bench.machine.other_processes import OtherCpu
from stepscale.bench.records.contended import CONTENDED

SYSTEM, CPU_INFO = Path("/sys"), Path("/proc/cpuinfo")
UNKNOWN = "unknown: the system does not tell"
UNSTEADY = 0.1  # spread of a core's speed


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    found: str
    remedy: str = ""  # empty where it disturbs nothing

    def mark(self) -> str:
        """Return two letters for the margin."""
        return "!!" if self.remedy else "??" if self.found.startswith("unknown") else "ok"


def load(seconds: float = 3.0) -> Finding:
    """See how much CPU others use while this process rests, and who they are."""
    others, before = OtherCpu(0), cpu_of_processes()
    time.sleep(seconds)
    cores, after = others.cores(), cpu_of_processes()
    if cores is None:
        return Finding("load", UNKNOWN)
    if cores <= CONTENDED:
        return Finding("load", f"others use {cores:.2f} cores")
    used = {pid: (spent - before.get(pid, ("", spent))[1], name) for pid, (name, spent) in after.items()}
    busiest = sorted(used.items(), key=lambda item: -item[1][0])[:3]
    most = [f"{name} (process {pid})" for pid, (spent, name) in busiest if spent]
    remedy = f"mostly {', '.join(most) or 'unknown'}; stop or wait for them"
    return Finding("load", f"others use {cores:.2f} cores", remedy)


def cpu_of_processes() -> dict[int, tuple[str, float]]:
    """Return name and seconds of CPU of every other process that may be read."""
    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        name, times = process.info["name"], process.info["cpu_times"]
        if times is not None and process.pid != os.getpid():  # None: it may not be read
            found[process.pid] = (name, times.user + times.system)
    return found


def steadiness(seconds: float = 3.0) -> Finding:
    """Time the same loop on one core after another: neighbours on the same host change a core's speed unseen."""
    if sys.platform != "linux":
        return Finding("cores", "unknown: the system does not let a process choose its core")
    allowed = os.sched_getaffinity(0)
    times: dict[int, list[float]] = {core: [] for core in sorted(allowed)[:8]}
    until = time.perf_counter() + seconds
    try:
        while time.perf_counter() < until:
            for core, taken in times.items():
                os.sched_setaffinity(0, {core})
                start = time.perf_counter()
                sum(range(200_000))
                taken.append(time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, allowed)
    medians = {core: float(np.median(taken)) for core, taken in times.items()}
    apart = max(medians.values()) / min(medians.values()) - 1
    low, high = np.quantile([x / medians[core] for core, taken in times.items() for x in taken], [0.05, 0.95])
    varies = high / low - 1
    found = f"medians of {len(times)} cores are {100 * apart:.0f} % apart; one core varies by {100 * varies:.0f} %"
    if max(apart, varies) < UNSTEADY:
        return Finding("cores", found)
    remedy = "take comparisons in turns on one core, as stepscale regress does, and use more seeds"
    return Finding("cores", found, remedy)


def settings() -> list[Finding]:
    """Read governor, turbo, hyper-threads and whether this is a virtual machine."""
    off_on, on_off = {"0": "off", "1": "on"}, {"0": "on", "1": "off"}
    warm, turbo = "on: clocks depend on heat and on other cores; write {} to hold them", "intel_pstate/no_turbo"
    return [
        _judge(
            "governor", "devices/system/cpu/cpu*/cpufreq/scaling_governor", "performance",
            "clocks follow the load; `cpupower frequency-set -g performance` holds them",
        ),
        _judge("turbo", f"devices/system/cpu/{turbo}", "1", warm.format(f"1 to {turbo}"), on_off),
        _judge("boost", "devices/system/cpu/cpufreq/boost", "0", warm.format("0 to cpufreq/boost"), off_on),
        _judge(
            "hyper-threads", "devices/system/cpu/smt/active", "0",
            "two of the system's cores share one real core; use half as many threads", off_on,
        ),
        _virtual(),
    ]  # fmt: skip


def _judge(what: str, pattern: str, good: str, remedy: str, names: dict[str, str] | None = None) -> Finding:
    found = set()
    for path in SYSTEM.glob(pattern):
        try:
            found.add(path.read_text().strip())
        except OSError:
            continue
    if not found:
        return Finding(what, UNKNOWN)
    shown = ", ".join(sorted((names or {}).get(value, value) for value in found))
    return Finding(what, shown, "" if found == {good} else remedy)


def _virtual() -> Finding:
    try:
        flags = CPU_INFO.read_text()
    except OSError:
        return Finding("host", UNKNOWN)
    if "flags" not in flags:  # as on ARM
        return Finding("host", UNKNOWN)
    if " hypervisor" in flags:
        return Finding("host", "a virtual machine", "others on its host disturb it and are not seen as load")
    return Finding("host", "a machine of its own")


COUNTERS = {
    "times throttled by heat": "cool it, or use fewer threads",
    "times throttled by the control group's quota": "use no more threads than the quota has cores, or raise it",
    "seconds taken by the host": "others on the host are served first; measure at another time, or on another host",
}
FEW = {"seconds taken by the host": 0.1}


def throttled() -> dict[str, float]:
    """Read the counters of ``COUNTERS``; those the system does not tell are left out."""
    heat, quota, host = COUNTERS
    counters: dict[str, float] = {}
    with suppress(OSError, ValueError):
        paths = list(SYSTEM.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"))
        counters |= {heat: float(sum(int(path.read_text()) for path in paths))} if paths else {}
    if (times := control_group.times_throttled()) is not None:
        counters[quota] = float(times)
    with suppress(OSError, KeyError):
        counters[host] = psutil.cpu_times()._asdict()["steal"]
    return counters


def throttling(before: dict[str, float], after: dict[str, float]) -> list[Finding]:
    """Say of each counter how far it has moved; a tenth of a second of the host's is nothing."""
    if not before:
        return [Finding("throttling", UNKNOWN)]
    moved = {name: after[name] - before[name] for name in before}
    return [
        Finding("throttling", f"{by:g} {name}", COUNTERS[name] if by > FEW.get(name, 0) else "")
        for name, by in moved.items()
    ]


# what nvidia-smi calls it; what it is; whether its value disturbs; the remedy
QUERY: list[tuple[str, str, Callable[[str], bool], str]] = [
    (
        "clocks_event_reasons.active", "throttling", lambda mask: bool(int(mask, 16) & ~0x3),  # idle; set by the user
        "its clocks are held back; see nvidia-smi -q -d PERFORMANCE",
    ),
    (
        "utilization.gpu", "load", lambda percent: float(percent) > 5,
        "others use it; wait for them, or choose another by CUDA_VISIBLE_DEVICES",
    ),
    (
        "persistence_mode", "persistence", lambda mode: mode != "Enabled",
        "its first use is slow; nvidia-smi -pm 1 keeps it ready",
    ),
    ("mig.mode.current", "MIG", lambda mode: mode == "Enabled", "only a slice of it is measured"),
]  # fmt: skip


def gpu(ask: Callable[[list[str]], str] | None = None) -> list[Finding]:
    """Ask nvidia-smi for what disturbs the first GPU."""
    ask = ask or _nvidia_smi
    findings = []
    for field, what, disturbs, remedy in QUERY:
        try:
            value = ask([f"--query-gpu={field}", "--format=csv,noheader,nounits"]).splitlines()[0].strip()
            disturbed = disturbs(value)
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            findings.append(Finding(f"gpu {what}", f"unknown: {error}"))
            continue
        findings.append(Finding(f"gpu {what}", value, remedy if disturbed else ""))
    return findings


def _nvidia_smi(words: list[str]) -> str:
    if shutil.which("nvidia-smi") is None:
        raise OSError("there is no nvidia-smi")
    command = ["nvidia-smi", f"--id={first_gpu()}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
