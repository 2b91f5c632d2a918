"""Fine-tuning learns, and a training that was cut off ends as if nothing had happened."""

import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerState,
    TrainingArguments,
)

from common.errors import PipelineError
from common.settings import Settings
from tests.conftest import ENCODERS
from trainer import resumable_trainer
from trainer.dataset import Dataset, load_dataset
from trainer.evaluation import calibrated, evaluate
from trainer.fine_tune import FineTuned, fine_tune
from trainer.progress import ProgressLine

WORDS = {
    "Positive": ["good", "bright", "love", "product", "day"],
    "Negative": ["terrible", "waste", "no", "plot", "hours"],
}
"""Words of the small encoders' vocabulary."""


def write_texts(directory: Path, train: int = 178, val: int = 40) -> None:
    """Texts of each label from words of its own, each once. Of 178 texts, 18 are held out for the selection."""
    rng = random.Random(0)
    texts: dict[str, list[str]] = {}
    for label, words in WORDS.items():
        different: dict[str, None] = {}
        while len(different) < train + val:
            different[" ".join(rng.choices(words, k=rng.randint(3, 8)))] = None
        texts[label] = list(different)
    for name, part in (("train", slice(train)), ("val", slice(train, None))):
        rows = [f"{text},{label}\n" for label in WORDS for text in texts[label][part]]
        (directory / f"{name}.csv").write_text("text,label\n" + "".join(rows))


def make_learner(directory: Path) -> Path:
    """A random encoder that is the same in every run, and learns the texts within two epochs."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for words in WORDS.values() for word in words)]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(directory)  # type: ignore[no-untyped-call]
    torch.manual_seed(7)
    config = AutoConfig.for_model("bert", vocab_size=len(words), **ENCODERS["bert"])
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_learner(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def settings(tmp_path: Path, encoder: Path) -> Settings:
    write_texts(tmp_path)
    return Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        base_model=str(encoder),
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        learning_rate=1e-4,
        batch_size=16,
        epochs=2,
    )


@pytest.fixture
def dataset(settings: Settings) -> Dataset:
    return load_dataset(settings)


def scores(tuned: FineTuned) -> list[tuple[float, float]]:
    """Step and macro F1 of each evaluation."""
    return [(entry["step"], entry["eval_macro_f1"]) for entry in tuned.history if "eval_macro_f1" in entry]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk is full for files larger than `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def interrupt(settings: Settings, dataset: Dataset, step: int, **named: Any) -> None:
    """Fine-tune until Ctrl-C in the middle of `step`."""

    def press(_: ProgressLine, __: TrainingArguments, state: TrainerState, *___: object, **____: object) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", press)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(settings, dataset, **named)


def test_learns_and_keeps_the_best(settings: Settings, dataset: Dataset) -> None:
    tuned = fine_tune(settings, dataset)
    assert [step for step, _ in scores(tuned)] == [10, 20, 30, 40]
    assert tuned.val_logits.shape == (80, 2)
    assert np.bincount(tuned.val_targets).tolist() == [40, 40]
    # The logits are the saved model's own, and belong to the targets.
    accuracy = float((tuned.val_logits.argmax(axis=1) == tuned.val_targets).mean())
    assert accuracy > 0.85
    # Held-out training texts choose the state, not the validation texts.
    assert tuned.selection_logits.shape == (36, 2)
    selected = float((tuned.selection_logits.argmax(axis=1) == tuned.selection_targets).mean())
    best = max(entry["eval_accuracy"] for entry in tuned.history if "eval_accuracy" in entry)
    assert selected == pytest.approx(best)
    losses = [entry["loss"] for entry in tuned.history if "loss" in entry]
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5])


def test_few_texts_are_learnt_to_the_end_and_of_equally_good_states_the_surest_is_kept(
    settings: Settings, tmp_path: Path
) -> None:
    write_texts(tmp_path, train=20, val=10)
    tuned = fine_tune(settings.model_copy(update={"epochs": None}), load_dataset(settings))
    assert (tuned.steps, tuned.hyperparameters["epochs"], len(tuned.selection_targets)) == (201, 67, 4)
    evaluations = [entry for entry in tuned.history if "eval_score" in entry]
    best = max(entry["eval_macro_f1"] for entry in evaluations)
    losses = [(best - entry["eval_score"]) * 1_000 for entry in evaluations if entry["eval_macro_f1"] == best]
    assert len(losses) > 1, "nothing shows unless several states are equally good"
    kept = torch.nn.functional.cross_entropy(
        torch.from_numpy(tuned.selection_logits), torch.from_numpy(tuned.selection_targets)
    )
    assert float(kept) == pytest.approx(min(losses), abs=1e-3)


def test_a_quick_training_has_a_least_number_of_cheap_steps_and_says_if_the_machine_is_busy(
    settings: Settings, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainer.fine_tune.LEAST_STEPS", 3)
    monkeypatch.setattr("trainer.fine_tune.TRAINING_S", 1e-9)
    tuned = fine_tune(settings, dataset, quick=True)
    assert tuned.steps == 3
    assert not [entry for entry in tuned.history if "eval_score" in entry]
    before = AutoModelForSequenceClassification.from_pretrained(settings.base_model).state_dict()
    learnt = {name for name, weights in tuned.model.state_dict().items() if not torch.equal(weights, before[name])}
    assert {name.partition(".attention.")[0] for name in learnt if ".attention." in name} == {"bert.encoder.layer.1"}
    assert not [name for name in learnt if "embeddings" in name]
    assert "cores): only 1 training steps fit in 0 s. At least 3 are needed" in caplog.text


@pytest.mark.parametrize(("flag", "rounds"), [("avx512_bf16", False), ("amx_bf16", True)])
def test_training_is_in_bf16_only_with_amx(
    settings: Settings, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, flag: str, rounds: bool
) -> None:
    monkeypatch.setattr("trainer.resumable_trainer.instruction_sets", lambda: frozenset({flag}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tuned = fine_tune(settings.model_copy(update={"epochs": 1}), dataset)
    assert tuned.hyperparameters["bf16"] == rounds


def test_half_written_checkpoint_is_removed_and_the_one_before_is_taken(
    settings: Settings, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(settings, dataset, step=35)
    (training,) = (settings.state_dir / "training").iterdir()
    half = shutil.copytree(training / "checkpoint-30", training / "checkpoint-99")
    (half / "trainer_state.json").write_text('{"epoch": 2.0, "global')

    resumed = fine_tune(settings, dataset)

    assert "Resuming the interrupted training at step 30 of 40 (epoch 1.5)." in caplog.messages
    assert not half.exists()
    assert [step for step, _ in scores(resumed)] == [10, 20, 30, 40]


@pytest.mark.full
def test_resumed_training_gives_the_model_of_one_that_was_not_cut_off(
    settings: Settings, dataset: Dataset, tmp_path: Path
) -> None:
    """The seed decides the order of the texts in every epoch, also in the one that was cut off."""
    whole = fine_tune(settings.model_copy(update={"state_dir": tmp_path / "other"}), dataset)
    interrupt(settings, dataset, step=35)
    resumed = fine_tune(settings, dataset)
    assert [entry["loss"] for entry in resumed.history if "loss" in entry] == pytest.approx(
        [entry["loss"] for entry in whole.history if "loss" in entry], abs=1e-3
    )
    assert np.allclose(resumed.val_logits, whole.val_logits, atol=1e-2)


def test_training_that_had_stopped_early_does_not_go_on_when_it_is_resumed(
    settings: Settings, dataset: Dataset
) -> None:
    """As when it was killed after its last step and before the model was saved."""
    stopping = settings.model_copy(update={"learning_rate": 1e-9})
    stopped = fine_tune(stopping, dataset)
    assert [step for step, _ in scores(stopped)] == [10, 20, 30], "nothing shows unless it stops early"
    assert scores(fine_tune(stopping, dataset)) == scores(stopped)


@pytest.mark.full
@pytest.mark.parametrize("size", [100_000, 800_000], ids=["weights", "optimizer"])
def test_checkpoint_that_there_is_no_room_for_is_told_and_the_next_run_starts_anew(
    settings: Settings, dataset: Dataset, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    short = settings.model_copy(update={"epochs": 1})
    with largest_file(size), pytest.raises(PipelineError, match=r"cannot write its checkpoint to .*state/training"):
        fine_tune(short, dataset)
    assert scores(fine_tune(short, dataset))[-1][0] == 20
    assert not any("Resuming" in message for message in caplog.messages)


def test_other_data_start_a_training_of_their_own(
    settings: Settings, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(settings, dataset, step=15)
    with settings.val_data.open("a") as file:
        file.write("good good terrible,Positive\n")
    tuned = fine_tune(settings, load_dataset(settings))
    assert not any("Resuming" in message for message in caplog.messages)
    assert len(tuned.val_targets) == 81
    assert len(list((settings.state_dir / "training").iterdir())) == 2


def test_a_checkpoint_is_saved_in_time_also_between_evaluations(
    settings: Settings, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = resumable_trainer.ResumableTrainer._save_checkpoint

    def count(trainer: resumable_trainer.ResumableTrainer, *arguments: Any, **named: Any) -> None:
        saved.append(trainer.state.global_step)
        save(trainer, *arguments, **named)

    monkeypatch.setattr(resumable_trainer.ResumableTrainer, "_save_checkpoint", count)
    monkeypatch.setattr(resumable_trainer, "SAVE_EVERY_S", 0.0)
    tuned = fine_tune(settings, dataset)
    assert saved == list(range(1, tuned.steps + 1))
    best = max((entry for entry in tuned.history if "eval_score" in entry), key=lambda entry: entry["eval_score"])
    figures = evaluate(calibrated(tuned.selection_logits, 1.0), tuned.selection_targets, dataset.labels)
    assert figures.macro_f1 == pytest.approx(best["eval_macro_f1"])
