"""What is learnt from and what is judged by: feedback counts more than the file, and nothing is ever in both."""

import json
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from common.settings import Settings
from lifecycle.gates.evaluation_data import evaluation_data
from lifecycle.gates.training_data import UNLABELLED_FILE, MergedData, merge, unlabelled_texts, write
from serving.model_repo.texts import text_fault
from storage.database import Database, now
from storage.feedback import LabelledText, add_feedback, is_held_out, text_hash
from storage.sampled_predictions import AnsweredText, add_sample
from storage.tables import Feedback
from trainer.classes import MIN_TRAIN_ROWS, MIN_VAL_ROWS
from trainer.dataset import Dataset, LabelledTexts, fingerprint, load_dataset

BAD, GOOD = LABELS = ("Negative", "Positive")
LEARNT, HELD_OUT = (
    [text for text in (f"text {number}" for number in range(60)) if is_held_out(text_hash(text)) is held_out]
    for held_out in (False, True)
)
FILE, TOLD, NEW, VALIDATED = LEARNT[:4]
HELD_OUT_FILE, HELD_OUT_NEW, HELD_OUT_VALIDATED = HELD_OUT[:3]

EACH_ON_ONE_DATABASE = hypothesis_settings(max_examples=60)


def _dataset(train: dict[str, str], val: dict[str, str]) -> Dataset:
    learned = LabelledTexts(list(train), list(train.values()))
    judged = LabelledTexts(list(val), list(val.values()))
    return Dataset(learned, judged, LABELS, fingerprint(learned, judged), [])


def _tell(database: Database, told: dict[str, str]) -> None:
    add_feedback(database, [LabelledText(text, label) for text, label in told.items()], "admin")


def _learnt(data: MergedData) -> dict[str, str]:
    assert len(set(data.train.texts)) == len(data.train.texts)
    return dict(zip(data.train.texts, data.train.labels, strict=True))


def _judged(database: Database, dataset: Dataset) -> dict[str, str]:
    data = evaluation_data(Settings(), database, dataset)
    assert data.val == dataset.val
    return dict(zip(data.feedback.texts, data.feedback.labels, strict=True))


def test_without_feedback_the_files_are_learnt_from_as_they_are(database: Database) -> None:
    dataset = _dataset({FILE: BAD, HELD_OUT_FILE: GOOD}, {VALIDATED: GOOD})
    assert merge(Settings(), database, dataset) == MergedData(dataset.train, dataset.val, dataset.fingerprint, 0)


def test_feedback_takes_the_place_of_the_label_in_the_file(database: Database) -> None:
    dataset = _dataset({FILE: BAD, TOLD: BAD, f"{TOLD.upper()}": BAD}, {VALIDATED: BAD})
    _tell(database, {f"  {TOLD.title()} ": GOOD, NEW: BAD})
    merged = merge(Settings(), database, dataset)
    assert _learnt(merged) == {FILE: BAD, TOLD.title(): GOOD, NEW: BAD}
    assert merged.feedback_texts == 2
    assert merged.by_source == {"admin": 2}
    assert merged.fingerprint == fingerprint(merged.train, dataset.val)
    assert merged.val == dataset.val


def test_feedback_that_is_held_out_judges_and_is_not_learnt_from_even_from_the_file(database: Database) -> None:
    dataset = _dataset({FILE: BAD, HELD_OUT_FILE: BAD}, {VALIDATED: BAD})
    _tell(database, {HELD_OUT_FILE.upper(): GOOD, HELD_OUT_NEW: GOOD})
    assert _learnt(merge(Settings(), database, dataset)) == {FILE: BAD}
    assert _judged(database, dataset) == {HELD_OUT_FILE.upper(): GOOD, HELD_OUT_NEW: GOOD}


def test_validation_texts_are_never_learnt_from_and_judge_once(database: Database) -> None:
    dataset = _dataset({FILE: BAD, VALIDATED.upper(): GOOD}, {VALIDATED: BAD, HELD_OUT_VALIDATED: BAD})
    assert _learnt(merge(Settings(), database, dataset)) == {FILE: BAD}
    _tell(database, {VALIDATED.title(): GOOD, HELD_OUT_VALIDATED.title(): GOOD})
    assert _learnt(merge(Settings(), database, dataset)) == {FILE: BAD}
    assert _judged(database, dataset) == {}


def test_labels_that_the_files_do_not_have_are_passed_over(database: Database) -> None:
    dataset = _dataset({FILE: BAD}, {VALIDATED: BAD})
    _tell(database, {FILE: "Neutral", NEW: "Neutral", HELD_OUT_NEW: "Neutral"})
    assert _learnt(merge(Settings(), database, dataset)) == {FILE: BAD}
    assert _judged(database, dataset) == {}


def test_models_are_judged_by_recent_feedback_and_learn_from_all(database: Database) -> None:
    dataset = _dataset({FILE: BAD, HELD_OUT_FILE: BAD}, {VALIDATED: BAD})
    _tell(database, {NEW: GOOD, HELD_OUT_FILE: GOOD})
    with database.transaction() as session:
        window = timedelta(days=Settings().feedback_window_days)
        session.execute(update(Feedback).values(received_at=now(session) - window))
    _tell(database, {HELD_OUT_NEW: GOOD})
    assert _judged(database, dataset) == {HELD_OUT_NEW: GOOD}
    # What models were judged by before is not learnt from now.
    assert _learnt(merge(Settings(), database, dataset)) == {FILE: BAD, NEW: GOOD}


SPELLINGS = [
    spelling
    for number in range(12)
    for spelling in (f"text {number}", f"TEXT {number}", f"Text  {number}", f"text\n{number}")
]


@EACH_ON_ONE_DATABASE
@given(
    train=st.dictionaries(st.sampled_from(SPELLINGS), st.sampled_from(LABELS)),
    val=st.dictionaries(st.sampled_from(SPELLINGS), st.sampled_from(LABELS)),
    told=st.lists(st.tuples(st.sampled_from(SPELLINGS), st.sampled_from([*LABELS, "Neutral"])), max_size=30),
)
def test_no_text_is_both_learnt_from_and_judged_by(
    database: Database, train: dict[str, str], val: dict[str, str], told: list[tuple[str, str]]
) -> None:
    with database.transaction() as session:
        session.execute(delete(Feedback))
    add_feedback(database, [LabelledText(text, label) for text, label in told], "admin")
    # As the files are read: no text is in both, letter by letter.
    dataset = _dataset({text: label for text, label in train.items() if text not in val}, val)
    judged = {text_hash(text) for text in evaluation_data(Settings(), database, dataset).texts}
    learnt = {text_hash(text): label for text, label in _learnt(merge(Settings(), database, dataset)).items()}
    assert not judged & learnt.keys()
    newest = {text_hash(text): label for text, label in told}
    for hash_, label in newest.items():
        if label in LABELS and hash_ not in {text_hash(text) for text in val}:
            assert (hash_ in judged) if is_held_out(hash_) else (learnt[hash_] == label)


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from('",\r\n ')).map(
        str.strip
    ),
    unique=True,
    max_size=12,
).map(lambda texts: [text for text in texts if text_fault(text) is None])
ODD_TEXTS = ['he said "no", twice', '"', '""', "a,b", "one\ntwo", "one\r\ntwo", "one\rtwo", "'", "\ufeffmark", "a\\"]


@EACH_ON_ONE_DATABASE
@given(texts=TEXTS)
def test_what_is_written_is_read_back(tmp_path: Path, texts: list[str]) -> None:
    texts = [*texts, *(text for text in ODD_TEXTS if text not in texts)]
    plain = [f"plain text {number}" for number in range(2 * (MIN_TRAIN_ROWS + MIN_VAL_ROWS))]
    cut = len(texts) // 2
    train_texts = plain[: 2 * MIN_TRAIN_ROWS] + texts[:cut]
    val_texts = plain[2 * MIN_TRAIN_ROWS :] + texts[cut:]
    train = LabelledTexts(train_texts, [LABELS[number % 2] for number in range(len(train_texts))])
    val = LabelledTexts(val_texts, [LABELS[number % 2] for number in range(len(val_texts))])
    data = MergedData(train, val, fingerprint(train, val), 0)
    train_path, val_path = write(data, tmp_path / "data", texts)
    read = load_dataset(Settings(train_data=train_path, val_data=val_path, state_dir=tmp_path / "state"))
    assert (read.train, read.val, read.notes) == (train, val, [])
    assert read.fingerprint == data.fingerprint
    assert json.loads((tmp_path / "data" / UNLABELLED_FILE).read_text()) == texts
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train.csv", UNLABELLED_FILE, "val.csv"]


def test_live_texts_are_learnt_from_once_and_never_what_is_judged_by(tmp_path: Path) -> None:
    database = Database(Settings(state_dir=tmp_path).database)
    _tell(database, {TOLD: GOOD, HELD_OUT_NEW: BAD})
    other = LEARNT[10:13]
    sampled = [FILE, TOLD, VALIDATED, HELD_OUT_NEW, HELD_OUT[5], *other, other[0].upper()]
    some = [AnsweredText(text, GOOD, b"\0" * 8, 1, False, time.monotonic()) for text in sampled]
    add_sample(database, some, keeps_texts=True)
    add_sample(database, [replace(some[5], text=LEARNT[20])], keeps_texts=False)
    merged = merge(Settings(state_dir=tmp_path), database, _dataset({FILE: GOOD}, {VALIDATED: BAD}))
    found = unlabelled_texts(database, merged)
    assert sorted(map(str.lower, found)) == sorted(other)
