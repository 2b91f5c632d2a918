"""An environment that has the package for client programs and nothing else of the project."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.pages import PROJECT


def python_with_client(directory: Path) -> Path:
    """The Python of a new virtual environment in `directory`, with the client installed as its page says."""
    # A copy, because setuptools builds beside what it builds from.
    for name in ("client", "common", "serving"):
        shutil.copytree(PROJECT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", directory / "environment"], check=True)
    python = directory / "environment" / "bin" / "python"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "./client"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    return python
