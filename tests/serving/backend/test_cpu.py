"""How many cores there are to use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.backend import cpu
from serving.backend.cpu_quota import cpu_quota

ALL = len(os.sched_getaffinity(0))


QUOTAS = [(None, None), ("max 100000", None), ("50000 100000", 0.5), ("150000 100000", 1.5), ("", None)]
"""The limit of a group as version 2 writes it, and the CPUs that it stands for."""


def make_proc(directory: Path, groups: str, mounts: str) -> Path:
    """A process's directory in /proc; {} in `mounts` stands for the mount point of its control groups."""
    directory.joinpath("cgroup").write_text(groups)
    directory.joinpath("mountinfo").write_text(
        f"22 27 0:21 / /proc rw,relatime - proc proc rw\n{mounts.format(directory / 'groups')}\n"
    )
    return directory


@pytest.mark.parametrize(("limit", "quota"), QUOTAS)
@pytest.mark.parametrize("group", [".", "user.slice", "user.slice/shell.scope"])
def test_quota_of_version_2_is_that_of_the_process_or_of_a_group_around_it(
    group: str, limit: str | None, quota: float | None, tmp_path: Path
) -> None:
    """As systemd's `CPUQuota=` sets it for a slice or a unit, and a container engine for the outermost group."""
    proc = make_proc(
        tmp_path,
        "0::/user.slice/shell.scope\n",
        "30 23 0:27 / {} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
    )
    inner = tmp_path / "groups" / "user.slice" / "shell.scope"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    if limit is not None:
        (tmp_path / "groups" / group / "cpu.max").write_text(f"{limit}\n")
    assert cpu_quota(proc) == quota


@pytest.mark.parametrize(
    ("root", "path", "directory"),
    [
        ("/", "/system.slice/loop.service", "system.slice/loop.service"),
        ("/docker/4f2a", "/docker/4f2a", "."),
        ("/docker/4f2a", "/docker/4f2a/inner", "inner"),
        ("/", "/docker/4f2a", "."),
    ],
    ids=["systemd", "container", "group in a container", "namespace"],
)
@pytest.mark.parametrize(("microseconds", "quota"), [(-1, None), (50_000, 0.5), (150_000, 1.5)])
def test_quota_of_version_1(
    root: str, path: str, directory: str, microseconds: int, quota: float | None, tmp_path: Path
) -> None:
    groups = f"9:name=systemd:{path}\n4:memory:/elsewhere\n2:cpu,cpuacct:{path}\n0::/elsewhere\n"
    proc = make_proc(
        tmp_path,
        groups,
        f"31 30 0:28 /x /elsewhere rw - cgroup cgroup rw,memory\n"
        f"32 31 0:29 {root} {{}} rw - cgroup cgroup rw,cpu,cpuacct",
    )
    group = tmp_path / "groups" / directory
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(f"{microseconds}\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(proc) == quota


def test_there_is_no_quota_where_the_system_has_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "proc") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, ALL), (0.5, 1), (1.0, 1), (1.001, min(2, ALL)), (999.0, ALL)])
def test_quota_bounds_the_cores(quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    assert cpu.usable_cores() == cores


def test_affinity_bounds_the_cores() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from serving.backend.cpu import usable_cores; print(usable_cores())"
    project = Path(cpu.__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_bfloat16_is_what_the_kernel_says() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert cpu.has_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
