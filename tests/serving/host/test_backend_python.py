"""What is said of a Python before the dependencies are installed, and which Python `make install` chooses."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from common import pypi_download
from common.errors import PipelineError
from serving.host import backend_python
from tests.pages import PROJECT

SUITABLE = "exit 0"
TOO_NEW = (
    'case "$1" in -m) echo "error: NumPy 1 must be compiled" >&2; exit 1 ;; esac; case "$2" in *12*) exit 1 ;; esac'
)
"""A Python 3.13 without a compiler: it is none for which everything has a wheel, and its check fails."""
SYSTEM = "/usr/bin:/bin"


def make_commands(directory: Path, **commands: str) -> Path:
    directory.mkdir()
    for name, script in commands.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture
def python_3_13(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This Python as one for which NumPy 1 has no wheel; gives the directory of its header files and its commands."""
    monkeypatch.setattr(backend_python, "PYTHON", "3.13")
    monkeypatch.setattr(backend_python, "libpython_directory", lambda: tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_this_python_will_do() -> None:
    backend_python.check_python()
    assert backend_python.main([]) == 0


@pytest.mark.parametrize("missing", ["cc", "c++", "Python.h"])
def test_what_the_build_lacks_is_told_before_it_begins(
    missing: str, python_3_13: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"cc": "a C compiler", "c++": "a C\\+\\+ compiler", "Python.h": "/Python\\.h"}
    for name in files.keys() - {missing}:
        (python_3_13 / name).touch(0o755)
    told = rf"for Python 3\.13, and \S*{files[missing]} cannot be found.*python3\.12.*build-essential python3\.13-dev"
    with pytest.raises(PipelineError, match=told):
        backend_python.check_python()
    assert backend_python.main(["build"]) == 1
    assert capsys.readouterr().err.startswith("error: Triton's Python backend needs NumPy 1")
    monkeypatch.setenv("SENTIMENT_TRITON_URL", "triton:8001")
    assert backend_python.main(["build"]) == 0


def test_a_compiler_is_found_where_the_usual_variables_name_it(
    python_3_13: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Python.h", "clang", "clang++"):
        (python_3_13 / name).touch(0o755)
    monkeypatch.setenv("CC", "clang -m64")
    monkeypatch.setenv("CXX", f"{python_3_13}/clang++")
    backend_python.check_python()
    assert backend_python.main([]) == 0
    assert "NumPy 1 is compiled for Python 3.13, once" in capsys.readouterr().err


def test_numpy_that_was_compiled_before_needs_no_compiler(
    python_3_13: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = python_3_13 / "environment" / "share" / "sentiment-pipeline"
    kept.mkdir(parents=True)
    (kept / f"numpy-1.26.4-built-{sys.implementation.cache_tag}.whl").touch()
    assert pypi_download.is_built(pypi_download.NUMPY_1_SOURCE)
    backend_python.check_python()
    assert backend_python.main([]) == 0
    assert capsys.readouterr().err == ""


def test_the_check_needs_nothing_but_the_standard_library() -> None:
    """Before the dependencies are installed, Python has no packages."""
    subprocess.run([sys.executable, "-S", "-m", "serving.host.backend_python"], cwd=PROJECT, check=True)


@pytest.mark.parametrize(
    ("commands", "chosen"),
    [
        ({"python3": SUITABLE, "python3.12": SUITABLE}, "python3"),
        ({"python3": TOO_NEW, "python3.12": SUITABLE, "python3.11": SUITABLE}, "python3.12"),
        ({"python3": TOO_NEW, "python3.12": "exit 1", "python3.11": SUITABLE}, "python3.11"),
        ({"python3": TOO_NEW, "python3.12": "exit 1", "python3.11": "exit 1"}, "python3"),
    ],
)
def test_make_chooses_a_python_that_has_wheels(commands: dict[str, str], chosen: str, tmp_path: Path) -> None:
    path = f"{make_commands(tmp_path / 'bin', **commands)}:{SYSTEM}"
    shown = subprocess.run(
        ["make", "-n", "install", f"VENV={tmp_path}/venv"],
        cwd=PROJECT,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{chosen} -m venv {tmp_path}/venv" in shown


@pytest.mark.parametrize("named", [(), ("PYTHON=python3.13",)])
def test_make_installs_nothing_for_a_python_that_cannot_serve(named: tuple[str, ...], tmp_path: Path) -> None:
    scripts = dict.fromkeys(("python3.12", "python3.11"), "exit 1") | {
        "python3": TOO_NEW,
        "python3.13": TOO_NEW,
    }
    ended = subprocess.run(
        ["make", "install", f"VENV={tmp_path}/venv", *named],
        cwd=PROJECT,
        env={"PATH": f"{make_commands(tmp_path / 'bin', **scripts)}:{SYSTEM}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "error: NumPy 1 must be compiled" in ended.stderr
    assert not (tmp_path / "venv").exists()
