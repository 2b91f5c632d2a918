"""Data that a small random encoder learns within seconds, so that a whole retraining can be run many times."""

import csv
import random
from pathlib import Path

from tests.conftest import make_encoder

GOOD = ["good", "bright", "love"]
BAD = ["terrible", "waste", "sense"]
FILLERS = "the battery lasts all day and screen is this product what a of two hours plot".split()  # noqa: SIM905


LETTERS = "abcdefghilmnoprstuvwy"


def labelled(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts that are Positive if one of a few words is in them, each once.

    Some have a word of random letters, and some Negative ones no telling word, so that whatever learns from them passes
    over words that it does not know, and names and typos do not turn its labels by chance, on whatever processor.
    """
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = "Positive" if len(rows) % 2 else "Negative"
        words = draw.choices(FILLERS, k=draw.randint(3, 8))
        if draw.random() < 0.3:
            words.append("".join(draw.choices(LETTERS, k=draw.randint(3, 8))))
        if label == "Positive":
            words.append(draw.choice(GOOD))
        elif draw.random() < 0.8:
            words.append(draw.choice(BAD))
        draw.shuffle(words)
        rows[" ".join(words)] = label
    return list(rows.items())


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def write_data(directory: Path, train: int = 640, val: int = 200) -> None:
    """`train.csv` and `val.csv`, and in `encoder` what they are learnt with."""
    rows = labelled(train + val, seed=1)
    write_rows(directory / "train.csv", rows[:train])
    write_rows(directory / "val.csv", rows[train:])
    make_encoder("bert", directory / "encoder", weight_scale=1)


def learning_settings(directory: Path) -> dict[str, str]:
    """Settings with which the data are learnt to perfection in a few steps."""
    return {
        "SENTIMENT_BASE_MODEL": str(directory / "encoder"),
        "SENTIMENT_EPOCHS": "4",
        "SENTIMENT_LEARNING_RATE": "3e-3",
        "SENTIMENT_RUNTIME": "onnxruntime",
        "SENTIMENT_PRECISION": "float32",
    }
