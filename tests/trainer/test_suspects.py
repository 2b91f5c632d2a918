"""Labels that are probably wrong: wrong ones are found, right ones are not, and a spreadsheet can open the list."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest

from common.settings import Settings
from tests.lifecycle.learning import BAD, FILLERS, GOOD
from trainer import confident_learning
from trainer.baseline import FOLDS, out_of_fold
from trainer.confident_learning import find_suspects
from trainer.dataset import LabelledTexts
from trainer.evaluation import Scores
from trainer.suspects import MOST_ROWS, Suspect, last_suspects, write_suspects

LABELS = ("Negative", "Neutral", "Positive")
TELLING = dict(zip(LABELS, (BAD, ["average", "usual"], GOOD), strict=True))


def easy(count: int, wrong: int, seed: int) -> tuple[LabelledTexts, set[str]]:
    """Texts of three labels, not equally frequent, that a word tells, and those among them that have a wrong label."""
    draw = random.Random(seed)
    texts: dict[str, str] = {}
    while len(texts) < count:
        label = draw.choices(LABELS, (3, 1, 2))[0]
        texts[" ".join([*draw.choices(FILLERS, k=6), draw.choice(TELLING[label]), *draw.choices(FILLERS, k=3)])] = label
    mislabelled = draw.sample(list(texts), wrong)
    for text in mislabelled:
        texts[text] = draw.choice([label for label in LABELS if label != texts[text]])
    return LabelledTexts(list(texts), list(texts.values())), set(mislabelled)


def judged(texts: LabelledTexts, right: float = 0.9) -> Scores:
    """Probabilities of a model that reads the words, and does not know the labels of the texts."""
    told = [[bool(set(words) & set(text.split())) for words in TELLING.values()] for text in texts.texts]
    return np.where(told, right, (1 - right) / 2)


def test_wrong_labels_are_found_whichever_model_judges_them() -> None:
    learnt, wrong = easy(900, 30, seed=1)
    selection, wrong_there = easy(100, 4, seed=2)
    val, wrong_val = easy(100, 5, seed=3)
    found = find_suspects(learnt, (selection, judged(selection)), (val, judged(val)), LABELS)
    texts = {suspect.text for suspect in found}
    assert wrong_there | wrong_val <= texts <= wrong | wrong_there | wrong_val
    assert len(texts & wrong) >= 15
    assert {suspect.text for suspect in found if suspect.data == "validation"} == wrong_val
    first = found[: 2 * len(wrong_there | wrong_val)]
    assert {suspect.text for suspect in first[::2]} == wrong_there | wrong_val, "the lists of both models alternate"
    margins = [suspect.suggested_score - suspect.label_score for suspect in found if suspect.text in wrong]
    assert margins == sorted(margins, reverse=True)
    for suspect in found:
        (right,) = {label for label, words in TELLING.items() if set(words) & set(suspect.text.split())}
        assert suspect.suggested_label == right != suspect.label
        assert 0 <= suspect.label_score < suspect.suggested_score <= 1


def test_of_many_learnt_texts_a_sample_is_examined_that_keeps_rare_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confident_learning, "MOST_LEARNT", 300)
    examined: list[LabelledTexts] = []

    def by_baseline(texts: LabelledTexts, labels: tuple[str, ...]) -> Scores:
        examined.append(texts)
        return out_of_fold(texts, labels)

    monkeypatch.setattr(confident_learning, "out_of_fold", by_baseline)
    learnt, wrong = easy(1200, 60, seed=5)
    rare = [f"an unusual text {number}" for number in range(FOLDS)]
    learnt = LabelledTexts([*learnt.texts, *rare], [*learnt.labels, *["Rare"] * FOLDS])
    nothing = LabelledTexts([], []), np.zeros((0, len(LABELS) + 1))
    found = find_suspects(learnt, nothing, nothing, (*LABELS, "Rare"))
    assert [len(part.texts) for part in examined] == [300]
    assert set(rare) <= set(examined[0].texts) <= set(learnt.texts)
    assert {suspect.text for suspect in found} & wrong
    assert find_suspects(learnt, nothing, nothing, (*LABELS, "Rare")) == found


def test_of_right_labels_none_is_listed(tmp_path: Path) -> None:
    learnt, selection, val = (easy(count, 0, seed=count)[0] for count in (600, 100, 101))
    settings = Settings(state_dir=tmp_path)
    assert last_suspects(settings) is None
    found = find_suspects(learnt, (selection, judged(selection)), (val, judged(val)), LABELS)
    listed = write_suspects(settings, found)
    assert (listed.rows, listed.is_full, last_suspects(settings)) == (0, False, listed)
    assert listed.path.read_text() == "data,text,label,suggested_label,label_score,suggested_score\n"


def test_the_list_holds_the_first_ones_is_private_and_runs_no_formula(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    suspects = [Suspect("training", f'=1+{number}\n"a"', "-1", "1", 0.1, 0.87654) for number in range(MOST_ROWS + 1)]
    listed = write_suspects(settings, suspects)
    assert (listed.rows, listed.is_full, last_suspects(settings)) == (MOST_ROWS, True, listed)
    assert listed.path.stat().st_mode & 0o077 == 0
    with listed.path.open(newline="") as file:
        found = list(csv.reader(file))[1:]
    assert found == [["training", f'\'=1+{number}\n"a"', "-1", "1", "0.1", "0.8765"] for number in range(MOST_ROWS)]
    write_suspects(settings, suspects[:2])
    assert last_suspects(settings) == type(listed)(listed.path, 2)
    listed.path.write_bytes(b"\xff\xfe")
    assert last_suspects(settings) is None
