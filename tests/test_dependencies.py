"""Every page and file claims the same Pythons, and the packages can be resolved on each of them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.pypi_download import NUMPY_1_WHEELS
from tests.pages import PAGES, PROJECT

PYTHONS = ("3.11", "3.12", "3.13")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")


def test_the_claimed_pythons_are_the_same_everywhere() -> None:
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
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
        [uv, "pip", "compile", "--quiet", "--python-version", python, "--all-extras", *groups, "pyproject.toml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    if "Failed to fetch" in resolved.stderr:
        pytest.skip("the package index cannot be reached")
    assert resolved.returncode == 0, resolved.stderr
    assert f"torch=={_pinned('torch')}" in resolved.stdout


def _pinned(package: str) -> str:
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{package}==([\w.]+)", lock, flags=re.MULTILINE)
    return str(version)
