"""Some of the faults on the real pipeline under load; `make chaos` causes all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import PROJECT

pytestmark = pytest.mark.full

FAULTS = [
    "stub-hangs",
    "promote-wrong-labels",
    "config-torn",
    "start-half-copied",
]


def run(*arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.e2e.chaos", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout_s)


def test_nothing_is_lost_or_wrong_and_all_comes_right_by_itself(tmp_path: Path) -> None:
    ended = run("--only", ",".join(FAULTS), "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads((tmp_path / "faults.json").read_text())
    assert [result["fault"] for result in results] == [
        name for name in (line.split()[0] for line in run("--list").stdout.splitlines()) if name in FAULTS
    ]
    for result in results:
        assert result["accepted"] > 0
        assert result["outcomes"]["right"] > 0
        assert (tmp_path / "faults.md").read_text().count(f"| `{result['fault']}`: ") == 1


def test_a_fault_that_is_none_is_told() -> None:
    ended = run("--only", "triton-sings")
    assert ended.returncode == 2
    assert "there is no fault 'triton-sings' here" in ended.stderr
