"""The deployed model learns new texts, half of the way, or a full training says why it takes place."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.settings import Settings
from tests.trainer.test_fine_tune import WORDS, interrupt, make_learner, write_texts
from trainer.base_model import load_trained
from trainer.consistency import LEAST_TEXTS
from trainer.dataset import Dataset, LabelledTexts, load_dataset
from trainer.fine_tune import FineTuned, fine_tune
from trainer.record import TrainingRecord, training_key
from trainer.train import save_beside
from trainer.update import LEARNT_FILE, plan_update, save_learnt

OTHER = {"Positive": "Negative", "Negative": "Positive"}
TOLD = "sense"
"""A word that the training texts do not have."""


def deploy(settings: Settings, dataset: Dataset, tuned: FineTuned) -> None:
    """Save what a training has made as the deployed model."""
    staging = save_beside(settings.model_dir, tuned.model, tuned.tokenizer)
    save_learnt(staging, dataset.train)
    TrainingRecord(
        version=1,
        run_id="",
        base_model=tuned.base_model,
        labels=dataset.labels,
        max_length=tuned.max_length,
        temperature=1.0,
        data_fingerprint=dataset.fingerprint,
        metrics={},
        training_key=training_key(settings, dataset.fingerprint),
        updates=tuned.updates,
    ).save(staging)
    staging.rename(settings.model_dir)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings whose model is trained and deployed, and which the tests do not change."""
    directory = tmp_path_factory.mktemp("deployed")
    write_texts(directory)
    settings = Settings(
        train_data=directory / "train.csv",
        val_data=directory / "val.csv",
        base_model=str(make_learner(directory / "encoder")),
        state_dir=directory / "state",
        model_dir=directory / "model",
        learning_rate=1e-4,
        batch_size=16,
        epochs=10,
    )
    dataset = load_dataset(settings)
    deploy(settings, dataset, fine_tune(settings, dataset))
    return settings


@pytest.fixture
def settings(deployed: Settings, tmp_path: Path) -> Settings:
    return deployed.model_copy(update={"state_dir": tmp_path / "state"})


def with_new(dataset: Dataset, texts: int = 24) -> Dataset:
    """The data with new texts, which are like those of a label, and have the other one."""
    draw = random.Random(1)
    new = [(" ".join([TOLD, TOLD, *draw.choices(WORDS["Positive"], k=3), str(n)]), "Negative") for n in range(texts)]
    rows = [*dataset.train.pairs(), *new]
    return replace(dataset, train=LabelledTexts([text for text, _ in rows], [label for _, label in rows]))


def test_learns_the_new_texts_beside_known_ones_and_ends_half_way(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = with_new(load_dataset(settings))
    tuned = fine_tune(settings, dataset, deployed=settings.model_dir)
    assert (tuned.updates, tuned.steps, tuned.hyperparameters["steps_of_full_training"]) == (1, 60, 220)
    told = "Version 1 is updated with 21 new texts and 320 that it knows, in 60 steps; a full training has 220."
    assert told in caplog.messages
    assert float((tuned.val_logits.argmax(axis=1) == tuned.val_targets).mean()) > 0.85, "known texts stay known"
    before = dict(fine_tuned_parameters(settings.model_dir))
    monkeypatch.setattr("trainer.update.OLD_SHARE", 0.0)
    after = fine_tune(
        settings.model_copy(update={"state_dir": tmp_path / "all"}), dataset, deployed=settings.model_dir
    ).model
    for name, weights in after.named_parameters():
        half = dict(tuned.model.named_parameters())[name]
        torch.testing.assert_close(half, (before[name] + weights) / 2)
        assert not torch.equal(half, weights) or "word_embeddings" in name, name


def fine_tuned_parameters(model_dir: Path) -> list[tuple[str, torch.Tensor]]:
    return list(load_trained(model_dir, TrainingRecord.load(model_dir)).model.named_parameters())


@pytest.mark.parametrize("unlabelled", [0, LEAST_TEXTS])
def test_an_interrupted_update_resumes(settings: Settings, tmp_path: Path, unlabelled: int) -> None:
    dataset = with_new(load_dataset(settings))
    named: dict[str, Any] = {"deployed": with_mask_token(settings.model_dir), "unlabelled": praise(unlabelled)}
    whole = fine_tune(settings.model_copy(update={"state_dir": tmp_path / "whole"}), dataset, **named)
    interrupt(settings, dataset, step=45, **named)
    resumed = fine_tune(settings, dataset, **named)
    assert resumed.hyperparameters.get("unlabelled_texts", 0) == unlabelled
    assert resumed.val_logits == pytest.approx(whole.val_logits, abs=1e-5)


def test_a_word_of_texts_without_labels_is_learnt_from_those_beside_it(settings: Settings, tmp_path: Path) -> None:
    """And not if they are few."""
    deployed = with_mask_token(settings.model_dir)
    rows = load_dataset(settings)
    new = [(f"{text} {WORDS[label][0]}", label) for text, label in [*rows.train.pairs()][:40]]
    dataset = replace(rows, train=LabelledTexts(*map(list, zip(*rows.train.pairs(), *new, strict=True))))
    positive = []
    for texts in (0, LEAST_TEXTS - 1, LEAST_TEXTS):
        own = settings.model_copy(update={"state_dir": tmp_path / str(texts)})
        tuned = fine_tune(own, dataset, deployed=deployed, unlabelled=praise(texts))
        with torch.no_grad():
            logits = tuned.model(**tuned.tokenizer([f"{TOLD} {TOLD} {TOLD}"], return_tensors="pt")).logits[0]
        positive.append(float(torch.softmax(logits, dim=0)[dataset.labels.index("Positive")]))
    assert positive[0] == positive[1]
    assert positive[2] > positive[0] + 0.1


def praise(texts: int) -> list[str]:
    """Texts without labels: a word that no training text has, beside words of the label Positive."""
    draw = random.Random(2)
    return [" ".join([TOLD, TOLD, *draw.choices(WORDS["Positive"], k=4)]) for _ in range(texts)]


def with_mask_token(model_dir: Path) -> Path:
    """Have the model's tokenizer hide words behind the token of unknown ones."""
    path = model_dir / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": "[UNK]"}))
    return model_dir


def of_record(**changes: object) -> Callable[[Path, Dataset], Dataset]:
    def change(model_dir: Path, dataset: Dataset) -> Dataset:
        replace(TrainingRecord.load(model_dir), **changes).save(model_dir)  # type: ignore[arg-type]
        return with_new(dataset)

    return change


def without_list(model_dir: Path, dataset: Dataset) -> Dataset:
    (model_dir / LEARNT_FILE).unlink()
    return with_new(dataset)


def cut_off(model_dir: Path, dataset: Dataset) -> Dataset:
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    return with_new(dataset)


def erased(_: Path, dataset: Dataset) -> Dataset:
    return with_new(replace(dataset, train=dataset.train.at(range(4, len(dataset.train.texts)))))


def relabelled(_: Path, dataset: Dataset) -> Dataset:
    return replace(dataset, train=replace(dataset.train, labels=[OTHER[label] for label in dataset.train.labels]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_record(quick=True), "version 1 is a quick first version"),
        (of_record(training_key="other"), "version 1 was trained with other settings"),
        (of_record(labels=("Negative", "Neutral", "Positive")), "version 1 has other labels"),
        (of_record(updates=5), "the last 5 trainings were updates"),
        (without_list, "the deployed model has no list of the texts that it has learnt"),
        (cut_off, "cannot be loaded ("),
        (erased, "4 texts that version 1 has learnt are gone or have another label"),
        (relabelled, "356 texts that version 1 has learnt are gone or have another label"),
        (lambda _, dataset: with_new(dataset, 400), "400 of 756 texts are new"),
        (lambda _, dataset: dataset, "0 of 356 texts are new"),
    ],
    ids=["quick", "settings", "labels", "many", "list", "damaged", "erased", "relabelled", "most new", "nothing new"],
)
def test_a_full_training_says_why_it_is_no_update(
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path, Dataset], Dataset],
    reason: str,
) -> None:
    shutil.copytree(settings.model_dir, tmp_path / "model")
    dataset = change(tmp_path / "model", load_dataset(settings))
    assert plan_update(settings, tmp_path / "model", dataset, dataset.train) is None
    assert "This is a full training, because" in caplog.text
    assert reason in caplog.text


def test_a_few_texts_may_go_and_a_text_may_be_spelt_anew(settings: Settings) -> None:
    dataset = with_new(load_dataset(settings))
    texts = [text.upper() + " " if place < 40 else text for place, text in enumerate(dataset.train.texts)][3:]
    data = replace(dataset, train=LabelledTexts(texts, dataset.train.labels[3:]))
    update = plan_update(settings, settings.model_dir, data, data.train)
    assert update is not None
    assert update.new == 24


def test_an_encoder_that_replaced_the_default_one_is_not_updated_once_that_can_be_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = with_new(load_dataset(settings))
    unnamed = Settings(**settings.model_dump(exclude={"base_model"}, exclude_unset=True))
    monkeypatch.setattr("trainer.update.training_key", lambda *_: TrainingRecord.load(settings.model_dir).training_key)
    for fault, is_updated in (("the hub cannot be reached", True), ("", False)):
        monkeypatch.setattr("trainer.base_model.why_not_available", lambda _, fault=fault: fault)
        assert (plan_update(unnamed, settings.model_dir, dataset, dataset.train) is not None) == is_updated
    assert "because bert-base-uncased can be loaded now, which " in caplog.text


def test_takes_no_more_steps_than_a_full_training(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = with_new(load_dataset(settings))
    monkeypatch.setattr("trainer.update.LEAST_STEPS", 500)
    update = plan_update(settings, settings.model_dir, dataset, dataset.train)
    assert update is not None
    assert update.steps == update.full_steps == 240


def test_hashes_are_kept_and_no_texts(settings: Settings) -> None:
    learnt = np.load(settings.model_dir / LEARNT_FILE)
    assert (learnt.dtype, learnt.shape) == (np.uint64, (356,))
