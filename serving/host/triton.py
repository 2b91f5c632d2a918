"""The bundled Triton: its platform requirements, files, environment and command line.

It has no TCP port. Its gRPC and metrics endpoints are UNIX sockets in its working directory, which has mode 0700
(`serving.client.sockets`). So only the pipeline's own user can reach model control, and no secret is needed.
"""

import hashlib
import os
import platform
import shutil
import site
import venv
from pathlib import Path

from common import pypi_download
from common.errors import PipelineError
from common.settings import BUNDLED_SOCKET, ENV_PREFIX, Settings
from common.tracing import traces_url
from common.triton_addresses import UNIX, socket_path
from serving.client import sockets
from serving.host.backend_python import PYTHON, check_python, libpython_directory, numpy_1
from serving.host.leftovers import end_earlier
from serving.model_repo.protocol import MODEL_NAME
from serving.model_repo.repository import BACKEND

_PROJECT = Path(__file__).resolve().parents[2]
_LINK = "files"
_FILES = f"/proc/self/cwd/{_LINK}"
"""Triton's directory in the state directory, as Triton and its stub see it through a link in their working directory.

Triton starts the stub of its Python backend by a shell's command line without quotes. And the stub, whose Python knows
only ASCII, ends without a reason if it should report a file with other characters in its path. So both get paths
through here, which have no blanks and no special characters, wherever the checkout is.
"""
_BACKENDS = "backends"
_OLDEST_GLIBC = (2, 35)
_NEVER = 1_000_000_000
"""Triton starts a trace for one in this many requests; requests with a client's trace are always traced."""


def command(settings: Settings) -> list[str]:
    """Return the command line that runs Triton for `settings`; download Triton if it is missing.

    Raises:
        PipelineError: this machine cannot run Triton, or it cannot be downloaded.
    """
    check_platform()
    _make_virtual_environment(settings.state_dir)
    server = server_directory() / "pytriton" / "tritonserver"
    return [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={_link(settings.state_dir, 'model_repository', settings.model_repository)}",
        f"--backend-directory={_assemble_backends(settings.state_dir, server)}",
        "--model-control-mode=explicit",
        f"--load-model={MODEL_NAME}",
        "--disable-auto-complete-config",
        # Relative to the working directory, so that its path may have any length. Triton adds the port to the name.
        f"--grpc-address={UNIX}{BUNDLED_SOCKET}",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--metrics-address={UNIX}{_metrics_name(settings)}",
        "--allow-http=false",
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(settings)}",
        "--backend-config=python,stub-timeout-seconds=300",
        *_tracing(settings),
    ]


def fetch() -> None:
    """Download what the bundled Triton needs here and has not got yet: itself and NumPy 1.

    Raises:
        PipelineError: it cannot be downloaded, unpacked or compiled.
    """
    server_directory()
    numpy_1()


def server_directory() -> Path:
    """Return the directory of the unpacked Triton; download and unpack it if it is missing.

    Raises:
        PipelineError: it cannot be downloaded or unpacked.
    """
    return pypi_download.unpack(pypi_download.fetch(pypi_download.TRITON))


def _tracing(settings: Settings) -> list[str]:
    """Return the options that make Triton add its spans to requests with a client's trace."""
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


def working_directory(settings: Settings) -> Path:
    """Return Triton's working directory, with a link to its files, and without an earlier Triton and its sockets.

    Raises:
        PipelineError: the directory cannot be used, or another account has access to it.
    """
    directory = socket_path(settings.bundled_triton).parent
    end_earlier(shared_memory_prefix(settings))
    for socket in (socket_path(settings.bundled_triton), metrics_socket(settings)):
        Path(sockets.private_path(socket)).unlink(missing_ok=True)
    (directory / _LINK).unlink(missing_ok=True)
    (directory / _LINK).symlink_to("..")
    return directory


def metrics_socket(settings: Settings) -> Path:
    """Return the path of the socket on which the bundled Triton publishes its metrics over HTTP."""
    return socket_path(settings.bundled_triton).with_name(_metrics_name(settings))


def _metrics_name(settings: Settings) -> str:
    return f"metrics:{settings.triton_grpc_port}"


def environment(settings: Settings) -> dict[str, str]:
    """Return Triton's environment variables, which select its Python virtual environment and contain no secrets."""
    virtual_environment = _virtual_environment(settings.state_dir)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", ENV_PREFIX))}
    library_path = [str(directory) for directory in (libpython_directory(),) if directory]
    if "LD_LIBRARY_PATH" in os.environ:
        library_path.append(os.environ["LD_LIBRARY_PATH"])
    return inherited | {
        "PATH": f"{virtual_environment / 'bin'}:{os.environ.get('PATH', '')}",
        "VIRTUAL_ENV": str(virtual_environment),
        "LD_LIBRARY_PATH": ":".join(library_path),
        "SENTIMENT_RUNTIME": settings.runtime,
        "SENTIMENT_PRECISION": settings.precision,
        # The engine distributes the cores; additional threads would only compete for them.
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def shared_memory_prefix(settings: Settings) -> str:
    """Return the name prefix of this Triton's shared memory, so that two pipelines can run side by side."""
    place = hashlib.sha256(settings.bundled_triton.encode()).hexdigest()[:8]
    return f"sentiment-{settings.triton_grpc_port}-{place}-"


def check_platform() -> None:
    """Raise a PipelineError with a fix if the bundled Triton cannot run on this machine."""
    elsewhere = (
        "use the containers, or run Triton elsewhere and set SENTIMENT_TRITON_URL to its gRPC address, host:port "
        "(docs/machines.md)."
    )
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
    check_python()


def _assemble_backends(state_dir: Path, server: Path) -> str:
    """Create the backend directory, with Triton's Python backend and our own backend that builds on it.

    Returns:
        the directory, as Triton sees it.
    """
    backends = (state_dir / "triton" / _BACKENDS).resolve()
    shutil.rmtree(backends, ignore_errors=True)
    python = backends / "python"
    shutil.copytree(server / "backends" / "python", python)
    # Link, because the stub finds its libraries relative to its own location.
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    (python / stub.name).symlink_to(stub)
    ours = backends / BACKEND
    ours.mkdir()
    shutil.copy(_PROJECT / "serving" / "backend" / BACKEND / "model.py", ours)
    return f"{_FILES}/{_BACKENDS}"


def _make_virtual_environment(state_dir: Path) -> None:
    """Create the virtual environment of Triton's Python backend: NumPy 1, and otherwise this Python's packages."""
    environment = _virtual_environment(state_dir)
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, symlinks=True)
    installed = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if Path(path).is_dir()]
    # Python searches the directories in this order, so NumPy 1 comes first.
    directories: list[str | Path] = [numpy_1(), *installed, _PROJECT]
    searched = [_link(state_dir, f"python-{place}", directory) for place, directory in enumerate(directories)]
    path_file = environment / "lib" / f"python{PYTHON}" / "site-packages" / f"{BACKEND}.pth"
    path_file.write_text("\n".join(searched) + "\n", encoding="ascii")


def _link(state_dir: Path, name: str, target: str | Path) -> str:
    """Create a link to a directory beside Triton's working directory, and return its path as Triton sees it."""
    link = state_dir / "triton" / name
    link.unlink(missing_ok=True)
    link.symlink_to(Path(target).resolve())
    return f"{_FILES}/{name}"


def _virtual_environment(state_dir: Path) -> Path:
    return (state_dir / "triton" / "venv").resolve()
