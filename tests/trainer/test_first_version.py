"""The quick first version: how much it learns from, and how many steps it takes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from trainer import first_version
from trainer.batches import TokenizedTexts
from trainer.dataset import Dataset, LabelledTexts
from trainer.first_version import sampled
from trainer.step_budget import affordable_steps

LABELS = ("Negative", "Positive")


def labelled(count: int) -> LabelledTexts:
    return LabelledTexts([f"good text {number}" for number in range(count)], [LABELS[n % 2] for n in range(count)])


def test_of_large_data_a_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(labelled(500), labelled(90), LABELS, "the fingerprint", [])
    assert sampled(dataset) == dataset
    monkeypatch.setattr(first_version, "MOST_TRAIN_TEXTS", 100)
    monkeypatch.setattr(first_version, "MOST_VAL_TEXTS", 50)
    part = sampled(dataset)
    assert (len(part.train.texts), len(part.val.texts), part.fingerprint) == (100, 50, "the fingerprint")
    assert set(part.train.pairs()) < set(dataset.train.pairs())
    assert sampled(dataset) == part, "training and export have the same"


def test_the_number_of_steps_fits_the_time_and_stays(bert_encoder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert_encoder)
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
    texts = TokenizedTexts(labelled(200), LABELS, tokenizer, 64)
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)

    def steps(directory: Path, seconds: float) -> int:
        return affordable_steps(directory, model, texts, 16, 13, collate, 8, bf16=False, seconds=seconds)

    few = steps(tmp_path / "few", 1e-9)
    many = steps(tmp_path / "many", 1e6)
    assert few == 1
    assert many > 1_000
    assert steps(tmp_path / "many", 1.0) == many, "a training that resumes has the same number"
    (tmp_path / "many" / "steps").write_text("")  # as a kill may leave it
    assert steps(tmp_path / "many", 1e-9) == 1
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
