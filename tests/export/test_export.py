"""Publishing: only what was proved, whole, once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd  # type: ignore[import-untyped]
import pytest
from mlflow import MlflowClient
from torch import Tensor

from common.errors import PipelineError
from common.settings import Settings
from export.export import export
from export.own_model import import_classifier
from export.packed_graph import PackedClassifier
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from tests.conftest import REFERENCE
from tests.trainer.test_fine_tune import largest_file, make_learner, write_texts
from tests.trainer.test_train import write_data
from trainer.dataset import Dataset, LabelledTexts
from trainer.kept_data import keep, kept_facts
from trainer.record import TrainingRecord
from trainer.train import train


@pytest.fixture(scope="module")
def trained(bert_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    directory = tmp_path_factory.mktemp("trained")
    write_data(directory)
    settings = Settings(
        train_data=directory / "train.csv",
        val_data=directory / "val.csv",
        base_model=str(bert_encoder),
        state_dir=directory / "state",
        model_dir=directory / "model",
        model_repository=directory / "triton_repo",
        runtime="onnxruntime",
        precision="float32",
        learning_rate=1e-3,
    )
    train(settings)
    return settings


def test_published_deployed_and_recorded_once(trained: Settings, tmp_path: Path) -> None:
    settings = trained.model_copy(update={"model_repository": tmp_path})
    assert export(settings) == 1
    repository = ModelRepository(tmp_path)
    version = repository.version_directory(1)
    assert {path.name for path in version.iterdir()} == {"model.onnx", "tokenizer.json", "bundle.json"}
    assert repository.deployed() == 1
    bundle, record = Bundle.load(version), TrainingRecord.load(settings.model_dir)
    assert bundle.labels == ("Negative", "Positive")
    assert (bundle.mlflow_run, bundle.data_fingerprint) == (record.run_id, record.data_fingerprint)
    assert bundle.data == record.data
    assert bundle.data.keys() == {"train", "val"}
    assert bundle.metrics["accuracy"] == pytest.approx(record.metrics["accuracy"])
    assert (bundle.baseline, bundle.training_key) == (record.baseline, record.training_key)
    assert bundle.proofs[0].variant == REFERENCE
    assert bundle.proofs[0].label_agreement == 1.0
    kept = kept_facts(settings)
    assert kept is not None
    assert (kept.version, kept.fingerprint) == (1, record.data_fingerprint)
    client = MlflowClient(settings.mlflow_uri)
    assert client.get_model_version_by_alias("sentiment", "champion").version in (1, "1")
    assert json.loads(Path(client.download_artifacts(record.run_id, "bundle.json")).read_text())["version"] == 1
    model = mlflow.pyfunc.load_model(client.download_artifacts(record.run_id, "model"))
    assert len(model.predict(pd.DataFrame({"text": ["a fine thing", "a poor thing"]}))) == 2
    for missing in ("", " \t", None, float("nan")):
        with pytest.raises(mlflow.MlflowException, match=r"row 7: there is no text, but .*1 of 2.* frame = frame\["):
            model.predict(pd.DataFrame({"text": ["a fine thing", missing]}, index=[3, 7], dtype=object))

    before = {path: path.stat().st_mtime_ns for path in version.iterdir()}
    with pytest.raises(PipelineError, match="is already published"):
        export(settings)
    assert {path: path.stat().st_mtime_ns for path in version.iterdir()} == before


def test_a_graph_that_answers_otherwise_is_not_published(
    trained: Settings, bert_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackedClassifier.forward

    def exchanged(
        self: PackedClassifier, input_ids: Tensor, position_ids: Tensor, segment_ids: Tensor, first_tokens: Tensor
    ) -> Tensor:
        return right(self, input_ids, position_ids, segment_ids, first_tokens).flip(1)

    monkeypatch.setattr(PackedClassifier, "forward", exchanged)
    shutil.copytree(bert_encoder, tmp_path / "model")
    shutil.copy(trained.model_dir / "training.json", tmp_path / "model")
    settings = trained.model_copy(
        update={"model_dir": tmp_path / "model", "model_repository": tmp_path / "triton_repo"}
    )
    expected = r"is not published.* onnxruntime float32: .* 99\.5% must agree.*SENTIMENT_BASE_MODEL .* train again"
    with pytest.raises(PipelineError, match=expected):
        export(settings)
    record = TrainingRecord.load(settings.model_dir)
    replace(record, imported=True).save(settings.model_dir)
    with pytest.raises(PipelineError, match=r"is not published.*Import a classifier of another family") as told:
        export(settings)
    assert "rain again" not in str(told.value)
    assert list((tmp_path / "triton_repo" / "sentiment").iterdir()) == []


def test_an_import_spells_labels_as_kept_data_reads_data_once_and_does_not_evaluate_on_random_words(
    bert_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        model_repository=tmp_path / "triton_repo",
    )
    settings.model_fields_set.clear()  # files at their usual places need not be there
    record, data = import_classifier(settings, str(bert_encoder), ["negative", "positive"], set())
    assert (record.labels, record.metrics) == (("negative", "positive"), {})
    monkeypatch.setattr("export.export.judging_data", lambda *_: pytest.fail("the data are read again"))
    assert export(settings, data) == 1
    assert "random words" in caplog.text
    assert "macro F1" not in caplog.text

    texts = LabelledTexts(["good", "poor"] * 20, ["Positive", "Negative"] * 20)
    keep(settings, 1, Dataset(texts, texts, ("Negative", "Positive"), "", []))
    record, data = import_classifier(settings, str(bert_encoder), ["negative", "positive"], {1})
    assert (record.labels, len(data.val.texts)) == (("Negative", "Positive"), 40)
    assert "The labels negative, positive are spelt as in the data: Negative, Positive." in caplog.text


def test_data_that_changed_since_the_training_are_told(trained: Settings, tmp_path: Path) -> None:
    changed = tmp_path / "val.csv"
    changed.write_text(trained.val_data.read_text() + "Another fine thing,Positive\n")
    with pytest.raises(PipelineError, match=r"has changed since the model in .* was trained"):
        export(trained.model_copy(update={"val_data": changed, "model_repository": tmp_path / "triton_repo"}))


def test_a_repository_that_cannot_be_written_is_told(trained: Settings, tmp_path: Path) -> None:
    (tmp_path / "sentiment").write_text("a file in the place of the model's directory")
    with pytest.raises(PipelineError, match=r"cannot be written to .*sentiment"):
        export(trained.model_copy(update={"model_repository": tmp_path}))


def test_a_version_published_but_not_deployed_is_deployed(trained: Settings, tmp_path: Path) -> None:
    settings = trained.model_copy(update={"model_repository": tmp_path})
    export(settings)
    (tmp_path / "sentiment" / "config.pbtxt").unlink()  # as if killed between the two
    assert export(settings) == 1
    assert ModelRepository(tmp_path).deployed() == 1


def test_a_version_that_there_is_no_room_for_leaves_nothing_behind(trained: Settings, tmp_path: Path) -> None:
    settings = trained.model_copy(update={"model_repository": tmp_path})
    with largest_file(100_000), pytest.raises(PipelineError, match=r"cannot be written .* Free some space"):
        export(settings)
    assert list((tmp_path / "sentiment").iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_model_is_told_by_what_to_do(trained: Settings, tmp_path: Path, name: str, damage: str) -> None:
    directory = shutil.copytree(trained.model_dir, tmp_path / "model")
    content = (directory / name).read_bytes()
    (directory / name).unlink()
    if damage == "cut":
        (directory / name).write_bytes(content[:100])
    settings = trained.model_copy(update={"model_dir": directory, "model_repository": tmp_path / "triton_repo"})
    with pytest.raises(PipelineError, match=r"(?s)model\b.*[Tt]rain") as told:
        export(settings)
    assert "Free some space" not in str(told.value)
    assert not list((tmp_path / "triton_repo").glob("*/*"))


def test_a_tokenizer_that_the_engine_does_not_follow_is_not_published(tmp_path: Path) -> None:
    """It keeps the end of a text that is too long, and the engine keeps the beginning."""
    encoder = make_learner(tmp_path / "encoder")
    options = json.loads((encoder / "tokenizer_config.json").read_text())
    (encoder / "tokenizer_config.json").write_text(json.dumps(options | {"truncation_side": "left"}))
    write_texts(tmp_path)
    for name in ("train", "val"):
        rows = (tmp_path / f"{name}.csv").read_text().splitlines()[1:]
        # Each text begins with a text of the other label, longer than the model reads.
        turned = [
            f"{' '.join(other.partition(',')[0].split() * 3)} {row}"
            for row, other in zip(rows, rows[::-1], strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *turned]) + "\n")
    settings = Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        base_model=str(encoder),
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        model_repository=tmp_path / "triton_repo",
        runtime="onnxruntime",
        precision="float32",
        learning_rate=5e-4,
        epochs=2,
        batch_size=16,
        max_length=8,
    )
    assert train(settings).metrics["accuracy"] > 0.8, "only a model that learned the ends shows it"
    with pytest.raises(PipelineError, match=r"is not published.* onnxruntime float32: .* at least 99\.5% must agree"):
        export(settings)
    assert list((tmp_path / "triton_repo" / "sentiment").iterdir()) == []


def test_a_store_that_is_gone_is_told_before_anything_is_published(trained: Settings, tmp_path: Path) -> None:
    settings = trained.model_copy(update={"state_dir": tmp_path / "new", "model_repository": tmp_path / "triton_repo"})
    with pytest.raises(PipelineError, match=r"MLflow.*Train"):
        export(settings)
    assert not list((tmp_path / "triton_repo").glob("*/*"))
