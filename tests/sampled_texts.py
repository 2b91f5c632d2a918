"""Texts that were asked, for tests of what is made of the sample."""

import random
import string
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from storage.database import Database
from storage.feedback import is_held_out, text_hash
from storage.sampled_predictions import AnsweredText, add_sample


def unlike(count: int, beginning: str = "", held_out: bool = False) -> list[str]:
    """Texts that share nothing but how they begin, all to be learnt from, or all held out; the same each time."""
    return list(islice(_unlike(random.Random(beginning), beginning, held_out), count))


def _unlike(draw: random.Random, beginning: str, held_out: bool) -> Iterator[str]:
    while True:
        words = ("".join(draw.choices(string.ascii_lowercase, k=8)) for _ in range(6))
        text = f"{beginning} {' '.join(words)}".strip()
        if is_held_out(text_hash(text)) == held_out:
            yield text


def asked(database: Database, texts: Sequence[str], positive: float = 0.5, version: int = 1) -> None:
    """Have texts been asked, whose probability to be positive was so much."""
    probabilities = np.array([1 - positive, positive], "<f4").tobytes()
    label = "Positive" if positive >= 0.5 else "Negative"
    rows = [AnsweredText(text, label, probabilities, version, False, time.monotonic()) for text in texts]
    add_sample(database, rows, keeps_texts=True)
