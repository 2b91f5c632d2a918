"""A step on long texts passes them in parts, and teaches the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from tests.conftest import LABELS, SENTENCES
from trainer import batches, distillation, fine_tune
from trainer.batches import TokenizedTexts
from trainer.dataset import LabelledTexts
from trainer.processes import Processes
from trainer.resumable_trainer import ResumableTrainer, training_arguments

TEXTS = LabelledTexts(SENTENCES, [LABELS[position % 2] for position in range(len(SENTENCES))])


def imitated(tokenizer: Any) -> TokenizedTexts:
    probabilities = torch.softmax(torch.arange(2.0 * len(SENTENCES)).reshape(-1, 2) % 5, dim=1).numpy()
    return distillation._ImitatedTexts(TEXTS, LABELS, tokenizer, 64, probabilities)


def labelled(tokenizer: Any) -> TokenizedTexts:
    return TokenizedTexts(TEXTS, LABELS, tokenizer, 64)


@pytest.mark.parametrize(("texts", "loss"), [(labelled, fine_tune._loss), (imitated, distillation._imitation_loss)])
def test_parts_of_a_batch_teach_what_the_whole_teaches(
    bert_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: Any, loss: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert_encoder)
    learnt, shapes = [], []
    for most_tokens in (4096, 50):
        monkeypatch.setattr(batches, "MOST_TOKENS", most_tokens)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            bert_encoder, hidden_dropout_prob=0, attention_probs_dropout_prob=0
        )
        seen: list[torch.Size] = []
        model.register_forward_pre_hook(
            lambda _, __, named, seen=seen: seen.append(named["input_ids"].shape), with_kwargs=True
        )
        trainer = ResumableTrainer(
            Processes(),
            loss,
            model=model,
            # Adam would blow up the rounding of gradients that are nearly 0.
            args=training_arguments(
                tmp_path, 3, len(SENTENCES), 0.1, 0, optim="sgd", eval_strategy="no", save_strategy="no"
            ),
            train_dataset=texts(tokenizer),
            data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        )
        losses = trainer.train().training_loss
        learnt.append(torch.cat([weights.detach().flatten() for weights in model.parameters()]))
        shapes.append((seen, losses))
    (whole, whole_loss), (parts, parts_loss) = shapes
    assert len(whole) == 3
    assert len(parts) > 6
    assert all(count * tokens <= 50 or count == 1 for count, tokens in parts)
    assert sum(count for count, _ in parts) == 3 * len(SENTENCES)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-4)
    assert torch.allclose(learnt[0], learnt[1], atol=1e-5)
