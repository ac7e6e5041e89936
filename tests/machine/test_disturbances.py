"""What the doctor reads, from a made-up system; what it can resolve, against the closed form."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from filelock import FileLock, Timeout
from scipy import stats

from stepscale.bench.cli import doctor
from stepscale.bench.machine import control_group, disturbances


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disturbances, "SYSTEM", tmp_path / "sys")
    monkeypatch.setattr(disturbances, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    monkeypatch.setattr(control_group, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_system_that_tells_nothing_is_unknown(system: Path) -> None:
    assert {finding.found for finding in disturbances.settings()} == {disturbances.UNKNOWN}
    assert disturbances.throttling(disturbances.throttled(), {}) == [("throttling", disturbances.UNKNOWN, "")]
    assert {finding.mark() for finding in disturbances.settings()} == {"??"}


def test_settings_that_disturb_come_with_a_remedy(system: Path) -> None:
    cpu = system / "sys" / "devices" / "system" / "cpu"
    put(cpu / "cpu0" / "cpufreq" / "scaling_governor", "performance\n")
    put(cpu / "cpu1" / "cpufreq" / "scaling_governor", "powersave\n")
    put(cpu / "intel_pstate" / "no_turbo", "0\n")
    put(cpu / "cpufreq" / "boost", "0\n")
    put(cpu / "smt" / "active", "1\n")
    put(system / "cpuinfo", "flags : fpu hypervisor lahf_lm\n")
    found = {finding.what: finding for finding in disturbances.settings()}
    assert found["governor"].found == "performance, powersave" and found["governor"].remedy
    assert found["turbo"].found == "on" and found["turbo"].remedy
    assert found["boost"] == ("boost", "off", "")
    assert found["hyper-threads"].found == "on" and found["hyper-threads"].remedy
    assert "virtual" in found["host"].found
    assert [found[what].mark() for what in ("governor", "boost")] == ["!!", "ok"]


def test_throttling_is_what_moved_meanwhile(system: Path) -> None:
    count = system / "sys" / "devices" / "system" / "cpu" / "cpu0" / "thermal_throttle" / "core_throttle_count"
    put(count, "7\n")
    put(system / "cgroup" / "cpu.stat", "usage_usec 5\nnr_throttled 2\n")
    put(system / "proc" / "stat", "cpu 1 2 3 4 5 6 7 8 9 0\n")
    before = disturbances.throttled()
    assert [finding.remedy for finding in disturbances.throttling(before, before)] == ["", "", ""]
    put(count, "10\n")
    put(system / "proc" / "stat", "cpu 1 2 3 4 5 6 7 48 9 0\n")
    moved = disturbances.throttling(before, disturbances.throttled())
    assert [(finding.found.split()[0], bool(finding.remedy)) for finding in moved] == [
        ("3", True),
        ("0", False),
        (f"{40 / os.sysconf('SC_CLK_TCK'):g}", True),
    ]


def test_load_names_who_it_is(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(pid: int, name: str, user: float, system: float) -> SimpleNamespace:
        return SimpleNamespace(pid=pid, info={"name": name, "cpu_times": SimpleNamespace(user=user, system=system)})

    busy, rest = process(41, "a (b) c", 1, 0), process(42, "idle", 0.05, 0.05)
    hidden = SimpleNamespace(pid=43, info={"name": "hidden", "cpu_times": None})
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter([busy, rest, hidden]))

    class OtherCpu:
        def __init__(self, idle: int) -> None: ...

        def cores(self) -> float:
            return 1.2

    def work(seconds: float) -> None:
        busy.info["cpu_times"] = SimpleNamespace(user=3.0, system=0.5)

    monkeypatch.setattr(disturbances, "OtherCpu", OtherCpu)
    monkeypatch.setattr(disturbances.time, "sleep", work)
    finding = disturbances.load()
    assert finding.found == "others use 1.20 cores"
    assert "a (b) c (process 41)" in finding.remedy and "idle" not in finding.remedy


def test_a_process_that_works_is_seen() -> None:
    """Another one's CPU grows as its own clock tells, and this one's is left out."""
    code = """
import sys, time
while time.process_time() < 0.3: pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        own_s = float(other.stdout.readline())
        found = disturbances.cpu_of_processes()
        other.communicate()
    assert found[other.pid][1] == pytest.approx(own_s, abs=0.05)
    assert os.getpid() not in found


def test_cores_are_compared_and_the_affinity_is_put_back() -> None:
    before = disturbances.os.sched_getaffinity(0)
    finding = disturbances.steadiness(0.05)
    assert f"medians of {min(8, len(before))} cores" in finding.found
    assert disturbances.os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("field", "quiet", "disturbed"),
    [
        ("clocks_event_reasons.active", "0x0000000000000001", "0x0000000000000004"),
        ("utilization.gpu", "0", "97"),
        ("persistence_mode", "Enabled", "Disabled"),
        ("mig.mode.current", "[N/A]", "Enabled"),
    ],
)
def test_a_gpu_is_asked(field: str, quiet: str, disturbed: str) -> None:
    def answer(value: str) -> list[disturbances.Finding]:
        found = disturbances.gpu(lambda words: (value if field in words[0] else "?") + "\n")
        return [finding for finding in found if finding.found == value]

    assert not answer(quiet)[0].remedy
    assert answer(disturbed)[0].remedy


def test_without_nvidia_smi_the_gpu_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert {finding.found for finding in disturbances.gpu()} == {"unknown: there is no nvidia-smi"}


def test_resolution_is_that_of_a_t_interval_on_two_means() -> None:
    """Simulated: of two means of the same code, one in twenty is further apart."""
    random = np.random.default_rng(0)
    apart = []
    for _ in range(4000):
        sd = np.std(random.normal(size=8), ddof=1) * 0.02
        means = random.normal(size=(2, 5)).mean(axis=1) * 0.02
        apart.append(abs(means[0] - means[1]) > np.log1p(doctor.resolution(sd, 8, 5)))
    assert np.mean(apart) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 4000))
    assert stats.t.ppf(0.975, 7) * 0.02 < doctor.resolution(0.02, 8, 2) < 0.05


def is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def test_the_doctor_says_what_it_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "DIMS", {"cpu": (8,), "cuda": (8,)})
    held, spread = list[bool](), doctor.spread

    def watched(dim: int, cells: int, device: str) -> str:
        held.append(any(map(is_held, Path(tempfile.gettempdir()).glob(f"stepscale-*-{device}*.lock"))))
        return spread(dim, cells, device)

    monkeypatch.setattr(doctor, "spread", watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    doctor.main(["--cells", "3"])
    assert held == [True], "the machine, against others that measure"
    said = capsys.readouterr().out
    for what in ("load", "cores", "governor", "throttling", "relative step at dim 8", "it can resolve"):
        assert what in said
    with pytest.raises(SystemExit):
        doctor.main(["--cells", "2"])
