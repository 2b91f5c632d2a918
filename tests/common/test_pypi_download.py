import hashlib
import json
import os
import resource
import signal
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from common import pypi_download
from common.errors import PipelineError
from common.pypi_download import BUILD_REQUIREMENT, VADER, Artifact, build, fetch, is_built, unpack


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a Python environment of its own keeps what is fetched; pip there has an index that refuses connections."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(pypi_download, "_in_state", [])  # a command that ran in this process may have set it
    return tmp_path / "environment" / "share" / "sentiment-pipeline"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> Artifact:
    """A wheel that pip finds in a directory of its configuration."""
    del store  # its pip settings come first
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "pipeline_probe-1.0-py3-none-any.whl"
    info = "pipeline_probe-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pipeline-probe\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        program = zipfile.ZipInfo("bin/program")
        program.external_attr = 0o100755 << 16
        archive.writestr(program, "#!/bin/sh\n")
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())
    return Artifact("pipeline-probe==1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())


def test_source_distribution_of_the_ratings_is_fetched_from_pypi() -> None:
    assert hashlib.sha256(fetch(VADER).read_bytes()).hexdigest() == VADER.sha256


def test_what_was_fetched_is_kept_so_that_pip_is_not_needed_again(
    published: Artifact, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fetch(published)
    assert kept == store / published.filename
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert fetch(published) == kept
    assert list(store.iterdir()) == [kept]


def test_damaged_kept_file_is_fetched_again(published: Artifact) -> None:
    kept = fetch(published)
    kept.write_bytes(kept.read_bytes()[:-1])
    assert hashlib.sha256(fetch(published).read_bytes()).hexdigest() == published.sha256


def test_wrong_checksum_is_refused_and_nothing_is_kept(published: Artifact, store: Path) -> None:
    with pytest.raises(PipelineError, match=r"checksum is not the pinned sha256 0{64}"):
        fetch(replace(published, sha256="0" * 64))
    assert list(store.iterdir()) == []


def test_setup_py_of_a_source_distribution_with_a_wrong_checksum_never_runs(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "pipeline_probe-1.0.zip", "w") as archive:
        archive.writestr("pipeline_probe-1.0/setup.py", f"open({str(ran)!r}, 'w')\n")
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())
    with pytest.raises(PipelineError, match="checksum"):
        fetch(Artifact("pipeline-probe==1.0", "pipeline_probe-1.0.zip", "0" * 64, source=True))
    assert not ran.exists()
    assert list(store.iterdir()) == []


BACKEND = """
import json, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    info = "pipeline_probe-1.0.dist-info"
    with zipfile.ZipFile(f"{directory}/pipeline_probe-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("settings.json", json.dumps(config_settings))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: pipeline-probe\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "pipeline_probe-1.0-py3-none-any.whl"
"""


def test_source_is_compiled_once_with_its_settings(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    source = links / "pipeline_probe-1.0.zip"
    with zipfile.ZipFile(source, "w") as archive:
        project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        archive.writestr("pipeline_probe-1.0/pyproject.toml", project)
        archive.writestr("pipeline_probe-1.0/backend.py", BACKEND)
    monkeypatch.setenv("PIP_FIND_LINKS", links.as_uri())
    checksum = hashlib.sha256(source.read_bytes()).hexdigest()
    probe = Artifact("pipeline-probe==1.0", source.name, checksum, source=True, build_settings=("setup-args=-Da=b",))
    assert not is_built(probe)
    built = build(probe)
    assert json.loads((unpack(built) / "settings.json").read_text()) == {"setup-args": "-Da=b"}
    source.unlink()
    assert is_built(probe)
    assert build(probe) == built
    assert built.parent == store


def test_source_distribution_is_read_with_the_pinned_setuptools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    used = tmp_path / "used"
    links = tmp_path / "links"
    links.mkdir()
    source = links / "pipeline_probe-1.0.zip"
    with zipfile.ZipFile(source, "w") as archive:
        record = f"open({str(used)!r}, 'w').write(setuptools.__version__)"
        setup = f"import setuptools\n{record}\nsetuptools.setup(name='pipeline-probe', version='1.0')\n"
        archive.writestr("pipeline_probe-1.0/setup.py", setup)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{os.environ.get('PIP_FIND_LINKS', '')} {links.as_uri()}".strip())
    fetch(Artifact("pipeline-probe==1.0", source.name, hashlib.sha256(source.read_bytes()).hexdigest(), source=True))
    assert f"setuptools=={used.read_text()}" == BUILD_REQUIREMENT


@pytest.mark.usefixtures("store")
def test_unreachable_index_is_told_with_the_last_words_of_pip() -> None:
    with pytest.raises(PipelineError, match=r"(?s)check the network.*last words:.*No matching distribution") as caught:
        fetch(VADER)
    assert VADER.requirement in str(caught.value)


@pytest.mark.usefixtures("store")
def test_python_without_pip_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(PipelineError, match=r"has no pip; add it with `.*bare/bin/python -m ensurepip`"):
        fetch(VADER)


def test_store_that_cannot_be_written_is_named(store: Path) -> None:
    store.parent.parent.mkdir()
    store.parent.write_text("a file in the place of a directory")
    with pytest.raises(PipelineError, match="share/sentiment-pipeline: Not a directory; make that directory writable"):
        fetch(VADER)


def test_wheel_is_unpacked_once_with_its_executables(published: Artifact) -> None:
    archive = fetch(published)
    directory = unpack(archive)
    assert directory.name == "pipeline_probe-1.0-py3-none-any"
    assert (directory / "bin" / "program").read_text() == "#!/bin/sh\n"
    assert (directory / "bin" / "program").stat().st_mode & 0o111
    assert not (directory / "pipeline_probe-1.0.dist-info" / "METADATA").stat().st_mode & 0o111
    archive.unlink()
    assert unpack(archive) == directory


def test_wheel_is_unpacked_by_many_at_once(published: Artifact) -> None:
    archive = fetch(published)
    with ThreadPoolExecutor(8) as pool:
        directories = set(pool.map(unpack, [archive] * 8))
    assert directories == {archive.with_suffix("")}
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted([archive.name, archive.stem])


def test_damaged_wheel_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "broken.whl"
    archive.write_bytes(b"no zip")
    with pytest.raises(PipelineError, match=r"broken\.whl is no intact wheel .*; delete it and start again"):
        unpack(archive)
    assert list(tmp_path.iterdir()) == [archive]


def test_wheel_that_there_is_no_room_for_leaves_nothing_behind(tmp_path: Path) -> None:
    archive = tmp_path / "large.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("large", bytes(1 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(PipelineError, match=r"cannot be unpacked in .*: File too large; make .* MiB free"):
            unpack(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [archive]
