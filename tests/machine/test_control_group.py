"""Limits of control groups, from made-up trees of both versions."""

import subprocess
import sys
from pathlib import Path

import pytest

from stepscale.bench.machine import control_group

GIB = 2**30
NO_LIMIT = 9223372036854771712  # as version 1 says it


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_group, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path / "cgroup"


def lies_in(root: Path, *lines: str) -> None:
    (root.parent / "membership").write_text("".join(f"{line}\n" for line in lines))


def put(group: Path, **files: object) -> None:
    """Write a group's files; the first underscore of a name is a dot."""
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("_", ".", 1)).write_text(f"{text}\n")


def test_a_system_without_groups_sets_no_limit(root: Path) -> None:
    assert control_group.memory_left() is control_group.cpu_quota() is control_group.times_throttled() is None


@pytest.mark.parametrize(("outer", "inner", "left"), [(8, 4, 3), (2, 4, 1), ("max", 4, 3), (8, "max", 7)])
def test_of_nested_groups_the_closest_limit_counts(root: Path, outer: object, inner: object, left: int) -> None:
    """As of a batch system's job within its user's slice; each group uses 1 GiB."""
    lies_in(root, "0::/slice/job.scope")
    for group, limit in ((root / "slice", outer), (root / "slice" / "job.scope", inner)):
        put(group, memory_max=limit if limit == "max" else int(str(limit)) * GIB, memory_current=GIB)
    put(root / "slice" / "other", memory_max=1, memory_current=1)
    assert control_group.memory_left() == left * GIB


def test_the_limit_that_leaves_least_need_not_be_the_least(root: Path) -> None:
    lies_in(root, "0::/slice/job")
    put(root / "slice", memory_max=8 * GIB, memory_current=7 * GIB)
    put(root / "slice" / "job", memory_max=4 * GIB, memory_current=GIB)
    assert control_group.memory_left() == GIB


def test_cached_files_count_as_left(root: Path) -> None:
    lies_in(root, "0::/job")
    put(
        root / "job", memory_max=4 * GIB, memory_current=3 * GIB, memory_stat=f"anon {GIB}\ninactive_file {GIB}\nfile 7"
    )
    assert control_group.memory_left() == 2 * GIB


def test_the_least_quota_of_nested_groups_counts(root: Path) -> None:
    lies_in(root, "0::/slice/job")
    put(root / "slice" / "job", cpu_max="max 100000")
    assert control_group.cpu_quota() is None
    put(root / "slice", cpu_max="250000 100000")
    assert control_group.cpu_quota() == 2.5
    put(root / "slice" / "job", cpu_max="400000 100000")
    assert control_group.cpu_quota() == 2.5
    put(root / "slice" / "job", cpu_max="60000 50000")
    assert control_group.cpu_quota() == 1.2


def test_version_1_has_a_tree_for_each_resource(root: Path) -> None:
    lies_in(root, "7:memory:/job/a", "4:cpu,cpuacct:/job/b", "1:name=systemd:/", "0::/elsewhere")
    put(root / "memory" / "job", memory_limit_in_bytes=6 * GIB, memory_usage_in_bytes=2 * GIB)
    put(
        root / "memory" / "job" / "a", memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=2 * GIB,
        memory_stat=f"inactive_file 5\ntotal_inactive_file {GIB}",
    )  # fmt: skip
    put(root / "memory", memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes=0)
    put(
        root / "cpu" / "job", cpu_cfs_quota_us=150000, cpu_cfs_period_us=100000, cpu_stat="nr_periods 9\nnr_throttled 3"
    )
    put(root / "cpu" / "job" / "b", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000, cpu_stat="nr_throttled 4")
    put(root / "elsewhere", memory_max=1, memory_current=0, cpu_max="1 100000")
    assert control_group.memory_left() == 3 * GIB
    assert control_group.cpu_quota() == 1.5
    assert control_group.times_throttled() == 7


def test_version_1_without_a_limit_sets_none(root: Path) -> None:
    lies_in(root, "7:memory:/")
    put(root / "memory", memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes=GIB)
    assert control_group.memory_left() is None


@pytest.mark.parametrize("path", ["/", "/docker/abc", "/../../job"])
def test_in_a_container_the_root_is_its_own_group(root: Path, path: str) -> None:
    """Its group's name may be the host's, and lead nowhere here."""
    lies_in(root, f"0::{path}")
    put(root, memory_max=2 * GIB, memory_current=GIB)
    put(root.parent / "job", memory_max=1, memory_current=1)
    assert control_group.memory_left() == GIB


def test_it_needs_the_standard_library_alone() -> None:
    code = "import sys, stepscale.bench.machine.control_group; print(*{'torch', 'numpy', 'psutil'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
