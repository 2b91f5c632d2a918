"""What Triton's Python backend needs of this Python: its shared library, and NumPy 1.

Triton 24.10's Python backend reads NumPy 2 arrays as if they were NumPy 1 arrays, and gets garbage. NumPy 1 has no
wheel for Python 3.13, so it is compiled there.

`python -m serving.host.backend_python` checks this Python before the dependencies are installed, so this module needs
only the standard library. With the argument `build`, it also compiles NumPy 1 if that is necessary.
"""

import ctypes.util
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from common import pypi_download
from common.errors import PipelineError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_COMPILERS = (("CC", "cc", "a C compiler"), ("CXX", "c++", "a C++ compiler"))
"""The variable that names each compiler, its usual command, and what it is."""


def check_python() -> None:
    """Raise a PipelineError with a fix if Triton's Python backend cannot run with this Python."""
    if libpython_directory() is None and ctypes.util.find_library(f"python{PYTHON}") is None:
        raise PipelineError(
            f"The shared library libpython{PYTHON}.so.1.0 is missing, which Triton's Python backend needs; "
            f"install it (Debian and Ubuntu: apt-get install libpython{PYTHON})."
        )
    missing = [] if _has_numpy_1() else _missing_for_the_build()
    if missing:
        raise PipelineError(
            f"Triton's Python backend needs NumPy 1, which must be compiled for Python {PYTHON}, and "
            f"{' and '.join(missing)} cannot be found. Use Python 3.11 or 3.12 in a new virtual environment "
            "(`make install VENV=.venv-3.12 PYTHON=python3.12`), which need no compiler; or install what is missing "
            f"(Debian and Ubuntu: apt-get install build-essential python{PYTHON}-dev)."
        )


def libpython_directory() -> Path | None:
    """Return the directory of this Python's shared library, or None if it has none there."""
    directory = Path(sysconfig.get_config_var("LIBDIR") or "")
    return directory if (directory / f"libpython{PYTHON}.so.1.0").is_file() else None


def numpy_1() -> Path:
    """Return the directory of NumPy 1 for this Python; download or compile it if it is missing.

    Raises:
        PipelineError: it cannot be downloaded or compiled.
    """
    wheel = pypi_download.NUMPY_1_WHEELS.get(PYTHON)
    return pypi_download.unpack(
        pypi_download.fetch(wheel) if wheel else pypi_download.build(pypi_download.NUMPY_1_SOURCE)
    )


def _has_numpy_1() -> bool:
    """Return whether NumPy 1 need not be compiled."""
    return PYTHON in pypi_download.NUMPY_1_WHEELS or pypi_download.is_built(pypi_download.NUMPY_1_SOURCE)


def _missing_for_the_build() -> list[str]:
    commands = [(shlex.split(os.environ.get(name, "")) or [usual], what) for name, usual, what in _COMPILERS]
    missing = [what for command, what in commands if shutil.which(command[0]) is None]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return missing if header.is_file() else [*missing, str(header)]


def main(arguments: Sequence[str]) -> int:
    """Check this Python, say what takes long, and with the argument `build` compile NumPy 1; return the exit status.

    With an external Triton (`SENTIMENT_TRITON_URL` in the environment), nothing is needed of this Python.
    """
    if os.environ.get("SENTIMENT_TRITON_URL"):
        return 0
    try:
        check_python()
        if not _has_numpy_1():
            print(
                f"NumPy 1 is compiled for Python {PYTHON}, once; this takes some minutes more than with Python 3.12.",
                file=sys.stderr,
            )
            if arguments == ["build"]:
                numpy_1()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
