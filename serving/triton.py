"""The bundled Triton: what it needs of this machine, where it lies, and its command line."""

import ctypes.util
import os
import platform
import secrets
import shutil
import site
import sys
import sysconfig
import venv
from pathlib import Path

import pypi_download
from errors import PipelineError
from serving.protocol import MODEL_NAME
from serving.repository import BACKEND
from settings import Settings
from tracing import traces_url

_PROJECT = Path(__file__).resolve().parent.parent
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_OLDEST_GLIBC = (2, 35)
_UNUSED = "shared-memory,trace,logging"
"""Of Triton's gRPC protocols, those that need a key which is told to nobody."""
_NEVER = 1_000_000_000
"""One of so many requests is traced, besides those whose caller traces them."""


def command(settings: Settings) -> list[str]:
    """The command line that runs Triton for `settings`; fetches Triton where it is not there yet.

    Raises:
        PipelineError: this machine cannot run it, or it cannot be fetched.
    """
    check_platform()
    _make_virtual_environment(settings.state_dir)
    server = pypi_download.unpack(pypi_download.fetch(pypi_download.TRITON)) / "pytriton" / "tritonserver"
    return [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={settings.model_repository.resolve()}",
        f"--backend-directory={_assemble_backends(settings.state_dir, server)}",
        "--model-control-mode=explicit",
        f"--load-model={MODEL_NAME}",
        "--disable-auto-complete-config",
        # This build has known weaknesses (SECURITY.md), so nothing of it is reachable from other machines, and what
        # nothing here needs is off.
        "--grpc-address=127.0.0.1",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--grpc-restricted-protocol={_UNUSED}:off={secrets.token_hex(16)}",
        f"--allow-http={str(settings.triton_http).lower()}",
        "--http-address=127.0.0.1",
        f"--http-port={settings.triton_http_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={settings.triton_metrics_port}",
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(settings)}",
        "--backend-config=python,stub-timeout-seconds=300",
        *_tracing(settings),
    ]


def _tracing(settings: Settings) -> list[str]:
    """Have Triton add its spans to those of the requests that bring one."""
    if settings.otlp_endpoint is None:
        return []
    options = (
        "mode=opentelemetry",
        f"opentelemetry,url={traces_url(settings.otlp_endpoint)}",
        "opentelemetry,resource=service.name=triton",
        "level=TIMESTAMPS",
        f"rate={_NEVER}",
    )
    return [f"--trace-config={option}" for option in options]


def environment(settings: Settings) -> dict[str, str]:
    """The environment variables with which Triton's Python finds its virtual environment."""
    virtual_environment = _virtual_environment(settings.state_dir)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    library_path = [str(directory) for directory in (_libpython_directory(),) if directory]
    if "LD_LIBRARY_PATH" in os.environ:
        library_path.append(os.environ["LD_LIBRARY_PATH"])
    return inherited | {
        "PATH": f"{virtual_environment / 'bin'}:{os.environ.get('PATH', '')}",
        "VIRTUAL_ENV": str(virtual_environment),
        "LD_LIBRARY_PATH": ":".join(library_path),
        "SENTIMENT_RUNTIME": settings.runtime,
        "SENTIMENT_PRECISION": settings.precision,
        # The engine divides the cores; more threads would only get in each other's way.
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def shared_memory_prefix(settings: Settings) -> str:
    """Begins the names of the shared memory of this pipeline's Triton, so that two can run side by side."""
    return f"sentiment-{settings.triton_grpc_port}-"


def check_platform() -> None:
    """Raise a PipelineError that says what to do where the bundled Triton cannot run."""
    elsewhere = "run Triton elsewhere and set SENTIMENT_TRITON_URL to its gRPC address, host:port."
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise PipelineError(
            f"The bundled Triton runs on Linux x86_64, not on {platform.system()} {platform.machine()}; {elsewhere}"
        )
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < _OLDEST_GLIBC:
        oldest = ".".join(map(str, _OLDEST_GLIBC))
        raise PipelineError(
            f"The bundled Triton needs glibc {oldest} or newer (Debian 12, Ubuntu 22.04), "
            f"this is {library or 'another C library'} {version}; {elsewhere}"
        )
    if _libpython_directory() is None and ctypes.util.find_library(f"python{_PYTHON}") is None:
        raise PipelineError(
            f"The shared library libpython{_PYTHON}.so.1.0 is missing, which Triton's Python backend needs; "
            f"install it (Debian and Ubuntu: apt-get install libpython{_PYTHON})."
        )


def _libpython_directory() -> Path | None:
    """Where this Python's own shared library lies, if it was built with one."""
    directory = Path(sysconfig.get_config_var("LIBDIR") or "")
    return directory if (directory / f"libpython{_PYTHON}.so.1.0").is_file() else None


def _assemble_backends(state_dir: Path, server: Path) -> Path:
    """Lay out a backend directory: Triton's Python backend, and ours that builds on it."""
    backends = (state_dir / "triton" / "backends").resolve()
    shutil.rmtree(backends, ignore_errors=True)
    python = backends / "python"
    shutil.copytree(server / "backends" / "python", python)
    # A link, because it finds its libraries relative to itself (design, finding 1).
    stub = server / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    (python / stub.name).symlink_to(stub)
    ours = backends / BACKEND
    ours.mkdir()
    shutil.copy(_PROJECT / "serving" / BACKEND / "model.py", ours)
    return backends


def _make_virtual_environment(state_dir: Path) -> None:
    """Make the environment of Triton's Python: NumPy 1, and for the rest the packages of this Python.

    Triton 24.10's Python backend reads the arrays of NumPy 2 as if they were NumPy 1's, and gets garbage.
    """
    environment = _virtual_environment(state_dir)
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, symlinks=True)
    wheel = pypi_download.NUMPY_1_WHEELS.get(_PYTHON)
    numpy_1 = pypi_download.unpack(
        pypi_download.fetch(wheel) if wheel else pypi_download.build(pypi_download.NUMPY_1_SOURCE)
    )
    installed = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if Path(path).is_dir()]
    # Python searches them in this order.
    path_file = environment / "lib" / f"python{_PYTHON}" / "site-packages" / f"{BACKEND}.pth"
    path_file.write_text("\n".join(map(str, (numpy_1, *installed, _PROJECT))) + "\n", encoding="utf-8")


def _virtual_environment(state_dir: Path) -> Path:
    return (state_dir / "triton" / "venv").resolve()
