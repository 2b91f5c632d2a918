"""How many cores there are to use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.backend import cpu

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", ALL),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("100001 100000", min(2, ALL)),
        ("99900000 100000", ALL),
        ("", ALL),
    ],
)
def test_quota_bounds_the_cores(quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cpu, "_CGROUP_CPU_MAX", tmp_path / "cpu.max")
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
