"""A first stage is added only with a certificate and a gain, and an interrupted distillation resumes."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import PipelineError
from common.settings import Settings
from export import first_stage
from export.export import export
from export.variants import ParityError
from serving.backend.engine import Engine
from serving.model_repo.bundle import FIRST_STAGE, Bundle
from serving.model_repo.repository import ModelRepository
from tests.conftest import REFERENCE
from tests.trainer.test_fine_tune import make_learner, write_texts
from trainer import resumable_trainer
from trainer.dataset import LabelledTexts, load_dataset
from trainer.distillation import Student
from trainer.resumable_trainer import ResumableTrainer
from trainer.selection import hold_out
from trainer.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    directory = tmp_path_factory.mktemp("trained")
    write_texts(directory, val=160)
    settings = Settings(
        train_data=directory / "train.csv",
        val_data=directory / "val.csv",
        base_model=str(make_learner(directory / "encoder")),
        state_dir=directory / "state",
        model_dir=directory / "model",
        runtime="onnxruntime",
        precision="float32",
        learning_rate=1e-4,
        batch_size=16,
        epochs=4,
        max_disagreement=0.01,
    )
    train(settings)
    return settings


@pytest.fixture
def settings(trained: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    # Encoders this small take no time beside the engine's own work, so two stages of them gain nothing.
    monkeypatch.setattr(first_stage, "LEAST_GAIN", 0.0)
    return trained.model_copy(update={"model_repository": tmp_path / "triton_repo"})


def published(settings: Settings) -> Path:
    return ModelRepository(settings.model_repository).version_directory(export(settings))


def test_a_certified_first_stage_decides_texts_as_the_full_model_does(settings: Settings) -> None:
    directory = published(settings)
    bundle, texts = Bundle.load(directory), load_dataset(settings).val.texts
    certificate = bundle.first_stage
    assert certificate is not None
    assert certificate.origin == "the first 1 of 2 layers"
    assert certificate.disagreement <= certificate.limit == 0.01
    assert (certificate.texts, certificate.full) == (len(texts), REFERENCE)
    with Engine(directory, REFERENCE, 2) as engine:
        assert engine.first is not None
        found = engine.classify(texts).values.argmax(axis=1)
        assert engine.totals().first_stage_texts == round(certificate.share * len(texts)) > 0
        engine.first.threshold = 1.1
        by_full_model = engine.classify(texts).values.argmax(axis=1)
    assert np.sum(found != by_full_model) == certificate.differing
    assert not list((settings.state_dir / "training").iterdir())


def test_it_learns_from_other_texts_what_the_full_model_says_of_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[LabelledTexts] = []

    def distilling(_: Settings, __: Student, texts: LabelledTexts, *___: object) -> None:
        given.append(texts)
        raise PipelineError("this is enough")

    monkeypatch.setattr(first_stage, "distil", distilling)
    live = [f"{text} indeed" for text in load_dataset(settings).val.texts[:30]]
    with pytest.raises(PipelineError, match="enough"):
        export(settings, unlabelled=live)
    [imitated] = given
    train, val = load_dataset(settings).train, load_dataset(settings).val
    learnt, _ = hold_out(train)
    own = len(learnt.texts)
    assert imitated.at(range(own)) == learnt
    assert imitated.texts[own : own + 30] == live
    assert len(imitated.texts) > own + 30, "with changed texts"
    assert not set(imitated.texts) & set(val.texts)
    directory = published(settings.model_copy(update={"max_disagreement": 0.0}))
    with Engine(directory, REFERENCE, 2) as engine:
        said = engine.classify(imitated.texts[own:]).values.argmax(axis=1)
    assert [engine.bundle.labels[label] for label in said] == imitated.labels[own:]


@pytest.mark.full
def test_a_first_stage_that_gains_too_little_is_left_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_stage, "LEAST_GAIN", 100.0)
    directory = published(settings)
    assert Bundle.load(directory).first_stage is None
    assert not (directory / FIRST_STAGE).exists()
    assert "The version has one stage, because two would be only" in caplog.text


@pytest.mark.full
def test_a_first_stage_that_fails_is_left_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def disagrees(*_: object) -> None:
        raise ParityError("the graph does not agree")

    monkeypatch.setattr(first_stage, "prove_variants", disagrees)
    directory = published(settings)
    assert Bundle.load(directory).first_stage is None
    assert not (directory / FIRST_STAGE).exists()
    assert not list((settings.state_dir / "training").iterdir())
    assert "The version has one stage, because the first one failed: the graph does not agree" in caplog.text


def test_too_few_texts_for_the_limit_are_said(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    directory = published(settings.model_copy(update={"max_disagreement": 0.009}))
    assert Bundle.load(directory).first_stage is None
    assert "320 validation texts cannot show that at most 0.9 % of texts get another label" in caplog.text
    assert "at least 332 are needed" in caplog.text


def test_an_interrupted_distillation_resumes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resumable_trainer, "SAVE_EVERY_S", 0.0)
    save = ResumableTrainer._save_checkpoint

    def killed(trainer: ResumableTrainer, *arguments: object, **named: object) -> None:
        save(trainer, *arguments, **named)
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(ResumableTrainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            export(settings)
    assert not ModelRepository(settings.model_repository).published()
    assert Bundle.load(published(settings)).first_stage is not None
    assert "Resuming the interrupted distillation from checkpoint-5." in caplog.text
