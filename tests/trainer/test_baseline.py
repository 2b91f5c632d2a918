"""The baseline: it learns from words, signs and scripts without spaces, and a model that is not better is told."""

import random
from collections.abc import Sequence

import pytest

from trainer.baseline import MANY_UNKNOWN, evaluate_baseline, not_better
from trainer.dataset import Dataset, LabelledTexts

FILLERS = {
    "english": (["the", "plot", "of", "this", "long", "film", "and", "its", "cast"], " "),
    "chinese": (list("电影故事演员音乐画面时间价格服务"), ""),
}
TELLING = {"english": ("wonderful", "dreadful"), "chinese": ("好吃", "难吃")}


def dataset(language: str, counts: Sequence[int], signs: tuple[str, str] | None = None) -> Dataset:
    """Texts whose label a word or a sign tells, so many of each label; half of them are for validation."""
    draw = random.Random(0)
    fillers, space = FILLERS[language]
    rows = []
    for label, (count, word) in enumerate(zip(counts, signs or TELLING[language], strict=True)):
        for _ in range(2 * count):
            words = draw.choices(fillers, k=8)
            words.insert(draw.randrange(9), word)
            rows.append((space.join(words), f"label {label}"))
    draw.shuffle(rows)
    train, val = (
        LabelledTexts([text for text, _ in part], [label for _, label in part]) for part in (rows[::2], rows[1::2])
    )
    return Dataset(train, val, ("label 0", "label 1"), "", [])


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_it_learns_what_words_tell_even_of_a_rare_label(language: str) -> None:
    found = evaluate_baseline(dataset(language, (30, 300)))
    assert found.macro_f1 > 0.95
    assert found == evaluate_baseline(dataset(language, (30, 300))), "the same texts give the same figures"


def test_it_reads_emoji() -> None:
    assert evaluate_baseline(dataset("english", (100, 100), signs=("🙂", "😡"))).accuracy > 0.95


def test_a_model_that_is_not_better_is_told_with_likely_causes() -> None:
    good, poor = {"accuracy": 0.905, "macro_f1": 0.9}, {"accuracy": 0.665, "macro_f1": 0.4}
    assert not_better(good, poor, steps=10, texts=10, unknown=0.9) == ""
    assert not_better({"accuracy": 1, "macro_f1": 1}, {"accuracy": 1, "macro_f1": 1}, 10, 10, 0) == ""
    message = not_better(poor, good, steps=299, texts=1_999, unknown=0.65)
    assert message == (
        "The model is not better than the baseline: macro F1 0.4000 against 0.9000, accuracy 0.6650 against 0.9050. "
        "Likely causes: the encoder does not know 65% of the tokens, so choose one of this language or script "
        "(SENTIMENT_BASE_MODEL); there are only 1,999 training texts, so add more; there were only 299 training steps, "
        "so train longer (SENTIMENT_EPOCHS)."
    )
    without = not_better(poor, poor, steps=300, texts=2_000, unknown=MANY_UNKNOWN - 0.01)
    assert without.endswith("Likely causes: none of the usual ones was found, so try more epochs or another encoder.")
