"""The model repository: a version is whole or not there, and what is deployed is on disk."""

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import PipelineError
from serving.model_repo.repository import ModelRepository


def stage(repository: ModelRepository, bundle: Path, version: int) -> Path:
    staging = repository.staging_directory(version)
    for file in bundle.iterdir():
        shutil.copy(file, staging)
    return staging


def test_published_and_deployed(bert_bundle: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "triton_repo")
    assert (repository.published(), repository.deployed()) == (set(), None)
    staging = stage(repository, bert_bundle, 1)
    assert repository.published() == set()
    repository.publish(staging, 1)
    assert (repository.published(), repository.deployed()) == ({1}, None)
    repository.deploy(1)
    assert repository.deployed() == 1


def test_a_published_version_is_never_overwritten(bert_bundle: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    repository.publish(stage(repository, bert_bundle, 1), 1)
    before = (repository.version_directory(1) / "bundle.json").stat().st_ino
    with pytest.raises(PipelineError, match="never overwritten"):
        repository.publish(stage(repository, bert_bundle, 1), 1)
    assert (repository.version_directory(1) / "bundle.json").stat().st_ino == before


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json", "bundle.json"])
def test_an_incomplete_version_is_neither_published_nor_deployed(
    bert_bundle: Path, tmp_path: Path, missing: str
) -> None:
    repository = ModelRepository(tmp_path)
    staging = stage(repository, bert_bundle, 1)
    (staging / missing).unlink()
    with pytest.raises(PipelineError, match=f"no complete version: {missing} missing"):
        repository.publish(staging, 1)
    assert repository.published() == set()
    with pytest.raises(PipelineError, match="no complete version"):
        repository.deploy(1)
    assert repository.deployed() is None


def test_damage_is_told(bert_bundle: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    repository.publish(stage(repository, bert_bundle, 1), 1)
    repository.deploy(1)
    (repository.version_directory(1) / "bundle.json").write_text("{")
    with pytest.raises(PipelineError, match=r"bundle\.json is damaged"):
        repository.deployed()
    (repository.model / "config.pbtxt").write_text('name: "sentiment"')
    with pytest.raises(PipelineError, match="names no deployed version"):
        repository.deployed()
    (repository.model / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PipelineError, match="names no deployed version"):
        repository.deployed()


def test_a_version_that_is_not_published_is_not_deployed(bert_bundle: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    repository.publish(stage(repository, bert_bundle, 1), 1)
    repository.deploy(1)
    with pytest.raises(PipelineError, match=r"sentiment/2 is no complete version"):
        repository.deploy(2)
    assert repository.deployed() == 1


def test_a_version_that_is_gone_is_told(bert_bundle: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    repository.publish(stage(repository, bert_bundle, 1), 1)
    repository.deploy(1)
    shutil.rmtree(repository.version_directory(1))
    with pytest.raises(PipelineError, match=r"sentiment/1 is no complete version"):
        repository.deployed()


def test_what_an_interrupted_export_left_is_cleared_away(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    (repository.staging_directory(1) / "model.onnx").write_bytes(b"half")
    assert repository.published() == set()
    assert list(repository.staging_directory(1).iterdir()) == []


def test_processes_that_lay_the_same_candidate_leave_each_others_files_alone(bert_bundle: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    for version in (1, 2):
        repository.publish(stage(repository, bert_bundle, version), version)
    repository.lay_challenger(1)
    half_written = tmp_path / "sentiment_challenger" / ".config.pbtxt.another.partial"
    half_written.touch()
    repository.lay_challenger(2)
    assert half_written.exists()
    assert repository.has_challenger_of(2)
    assert not repository.has_challenger_of(1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: repository.lay_challenger(2), range(400)))
    assert sorted(path.name for path in half_written.parent.iterdir()) == [half_written.name, "2", "config.pbtxt"]


def test_a_deployment_that_fails_keeps_the_record_and_leaves_no_file(
    bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = ModelRepository(tmp_path)
    for version in (1, 2):
        repository.publish(stage(repository, bert_bundle, version), version)
    repository.deploy(1)

    def fail(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serving.model_repo.repository.sync", fail)
    with pytest.raises(PipelineError, match="could not be written: No space left"):
        repository.deploy(2)
    assert repository.deployed() == 1
    assert sorted(path.name for path in repository.model.iterdir()) == ["1", "2", "config.pbtxt"]
