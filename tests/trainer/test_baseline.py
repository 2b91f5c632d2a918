"""The baseline: it learns from words, signs and scripts without spaces."""

import random
from collections.abc import Sequence

import pytest

from trainer.baseline import evaluate_baseline
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
