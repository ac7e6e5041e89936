"""Run the numerical tests under each instruction set and number of threads that this CPU has: ``make test-all``.

Each rounds otherwise. A test that hangs on a rounding passes under one and fails under another.
"""

import os
import subprocess
import sys

import torch

LEVELS = ("DEFAULT", "AVX2", "AVX512")  # of torch's own kernels; a CPU that has one has those before it
MKL_LEVELS = ("SSE4_2", "AVX2")  # MKL takes its highest by itself, so that is in every other run
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
MARKED = "numerical or slow"
MOST_WORKERS = 4  # each holds torch in memory

Setting = dict[str, str]  # environment variables


def all_settings() -> list[Setting]:
    """Return every setting, those that this machine lacks too."""
    found = [
        {"ATEN_CPU_CAPABILITY": level.lower(), "OMP_NUM_THREADS": threads} for level in LEVELS for threads in ("1", "2")
    ]
    return found + [{"MKL_ENABLE_INSTRUCTIONS": level, "OMP_NUM_THREADS": "1"} for level in MKL_LEVELS]


def lacking(setting: Setting) -> str | None:
    """Say what this machine lacks for a setting; None where it lacks nothing."""
    level, highest = setting.get("ATEN_CPU_CAPABILITY", "default").upper(), torch.backends.cpu.get_cpu_capability()
    higher = LEVELS[LEVELS.index(highest) + 1 :] if highest in LEVELS else LEVELS[1:]
    if level in higher:
        return f"torch finds no more than {highest} in this CPU"
    if "MKL_ENABLE_INSTRUCTIONS" in setting and not torch.backends.mkl.is_available():
        return "this torch is built without MKL"
    if int(setting["OMP_NUM_THREADS"]) > CORES:
        return f"this machine has {CORES} core"
    return None


def passes(setting: Setting) -> bool:
    """Run the numerical tests, and what ``make test`` leaves out, under a setting; return whether all passed."""
    workers = max(1, min(MOST_WORKERS, CORES // int(setting["OMP_NUM_THREADS"])))
    command = [sys.executable, "-m", "pytest", "-q", "-m", MARKED, "-n", str(workers), "--dist", "worksteal"]
    patient = {"OMP_WAIT_POLICY": "passive"}  # threads that spin would hold up each other where cores are few
    return subprocess.run(command, env=os.environ | patient | setting).returncode == 0


def main() -> None:
    """Run the tests under each setting, say of each what came of it, and exit with 1 where any failed."""
    verdicts = {}
    for setting in all_settings():
        name = " ".join(f"{key}={value}" for key, value in setting.items())
        print(f"\n{name}", flush=True)
        missing = lacking(setting)
        verdicts[name] = f"skipped: {missing}" if missing else "passed" if passes(setting) else "FAILED"
    print("\n".join(["", *(f"{name}: {verdict}" for name, verdict in verdicts.items())]))
    sys.exit("FAILED" in verdicts.values())


if __name__ == "__main__":
    main()
