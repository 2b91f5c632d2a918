"""Every page and file claims the same Pythons, and the packages can be resolved on each of them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from common.pypi_download import NUMPY_1_WHEELS
from tests.pages import PAGES, PROJECT

PYTHONS = ("3.11", "3.12", "3.13")
CLIENT = tomllib.loads((PROJECT / "client/pyproject.toml").read_text(encoding="utf-8"))["project"]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")


def test_the_claimed_pythons_are_the_same_everywhere() -> None:
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert CLIENT["requires-python"] == f">={PYTHONS[0]}"
    assert CLIENT["version"] == PYPROJECT["project"]["version"]
    assert PYPROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    claims = {
        page: re.findall(r"Python (3\.\d+) to (3\.\d+)", text)
        for page, text in [*PAGES.items(), ("Makefile", MAKEFILE)]
    }
    assert {"README.md", "Makefile", "docs/developing.md", "docs/troubleshooting.md"} <= {
        page for page, found in claims.items() if found
    }
    assert {claim for found in claims.values() for claim in found} == {(PYTHONS[0], PYTHONS[-1])}
    assert set(re.findall(r"--python-version (\S+)", MAKEFILE)) == {PYTHONS[0]}
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in MAKEFILE
    assert {*NUMPY_1_WHEELS, "3.13"} == set(PYTHONS)


@pytest.mark.full
@pytest.mark.parametrize("python", PYTHONS)
def test_every_extra_and_group_can_be_resolved(python: str) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed: pip install uv")
    groups = [word for group in PYPROJECT["dependency-groups"] for word in ("--group", group)]
    resolved = subprocess.run(
        [
            uv,
            "pip",
            "compile",
            "--no-config",
            "--quiet",
            "--python-version",
            python,
            "--all-extras",
            *groups,
            "pyproject.toml",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    if "Failed to fetch" in resolved.stderr:
        pytest.skip("the package index cannot be reached")
    assert resolved.returncode == 0, resolved.stderr
    assert f"torch=={locked('requirements.lock')['torch']}" in resolved.stdout


def locked(name: str) -> dict[str, str]:
    """The version of each package in a lock, by the last line where Pythons have different ones."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)===?([\w.+]+)", text, flags=re.MULTILINE))


def test_the_lock_for_gpus_replaces_the_builds_without_cuda_and_the_other_locks_leave_them() -> None:
    cpu, gpu = locked("requirements.lock"), locked("requirements-gpu.lock")
    text = (PROJECT / "requirements-gpu.lock").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch(\S+)$", text, flags=re.MULTILINE)
    assert f"{cpu['torch']}" in SpecifierSet(torch)
    assert f"{cpu['torch']}+cpu" not in SpecifierSet(torch)
    assert "onnxruntime" not in gpu
    assert {"onnxruntime-gpu", "nvidia-cudnn-cu13", "nvidia-cublas"} <= gpu.keys() - cpu.keys()
    assert {name: gpu[name] for name in cpu.keys() & gpu.keys()} == {
        name: cpu[name] for name in cpu.keys() & gpu.keys()
    }
    for name in ("requirements-dev.lock", "requirements-bench.lock"):
        other = locked(name)
        assert not {"onnxruntime", "onnxruntime-gpu"} & other.keys()
        assert f"{other['torch']}+cpu" in SpecifierSet(f"=={other['torch']}")
        assert other["torch"] == gpu["torch"]


def test_once_installed_for_a_gpu_make_keeps_its_builds(tmp_path: Path) -> None:
    def commands(*arguments: str) -> str:
        listed = ["make", "-n", f"VENV={tmp_path}", *arguments]
        return subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout

    assert "-r requirements.lock" in commands("install")
    assert "-r requirements-gpu.lock" in commands("install", "GPU=1")
    (tmp_path / ".installed").touch()
    assert "-r requirements-gpu.lock" in commands("install", "GPU=1")
    (tmp_path / ".installed-gpu").touch()
    for target in ("install", "run", "test"):
        assert "requirements.lock" not in commands(target), target
