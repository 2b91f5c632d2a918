"""Every page and file claims the same Pythons, and the packages can be resolved on each of them."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
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


def test_the_client_is_built_from_its_sdist_without_modules_of_earlier_builds_and_not_installed_editable(
    tmp_path: Path,
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("client", "common", "serving"):
        shutil.copytree(PROJECT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "build"))

    def build(hook: str, directory: Path) -> subprocess.CompletedProcess[str]:
        """Call a hook of the build backend, as pip and `python -m build` do."""
        call = f"from setuptools import build_meta; build_meta.{hook}({str(tmp_path)!r})"
        return subprocess.run([sys.executable, "-c", call], cwd=directory, capture_output=True, text=True)

    packed = build("build_sdist", checkout / "client")
    assert packed.returncode == 0, packed.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    stale = unpacked / "build/lib/sentiment_client/stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    built = build("build_wheel", unpacked)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("stale.py")]
    used = "import sentiment_client, sys; print(sentiment_client.Client, *(name for name in sys.modules if name in"
    environment = dict(os.environ) | {"PYTHONPATH": str(wheel)}
    printed = subprocess.run(
        [sys.executable, "-P", "-c", f"{used} ('common', 'serving')))"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert printed.stdout == "<class 'sentiment_client.serving.client.client.Client'>\n", printed.stderr
    refused = build("build_editable", checkout / "client")
    assert refused.returncode != 0
    assert "cannot be installed with -e" in refused.stderr
