import csv
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings import Settings
from serving.model_repo.bundle import RowCounts
from serving.model_repo.texts import text_fault
from trainer.classes import MIN_TRAIN_ROWS, MIN_VAL_ROWS
from trainer.dataset import DatasetError, LabelledTexts, load_dataset, read_labelled_texts

LABELS = ("Negative", "Positive")
TRAIN_ROWS = [(f"training text {i}", LABELS[i % 2]) for i in range(40)]
VAL_ROWS = [(f"validation text {i}", LABELS[i % 2]) for i in range(10)]


def lines(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{text},{label}\n" for text, label in rows)


HEADER = "text,label\n"
TRAIN = lines(TRAIN_ROWS)
"""40 good rows; one that is added after the header and them is row 42."""
VAL = lines(VAL_ROWS)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two good files, named in messages as train.csv and val.csv."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(train_data=Path("train.csv"), val_data=Path("val.csv"), state_dir=Path("state"))
    settings.train_data.write_text(HEADER + TRAIN)
    settings.val_data.write_text(HEADER + VAL)
    return settings


def with_(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


def one_file(settings: Settings) -> Settings:
    """Settings with the training file alone."""
    settings.val_data.unlink(missing_ok=True)
    return Settings(train_data=settings.train_data, state_dir=settings.state_dir)


def problems_of(settings: Settings) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load_dataset(settings)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def rejected(settings: Settings) -> list[tuple[str, int, str, str, str]]:
    """File, row, reason, text and label of all rows in the list."""
    with (settings.state_dir / "rejected_rows.csv").open(encoding="utf-8", newline="") as file:
        return [
            (row["file"], int(row["row"]), row["reason"], row["text"], row["label"]) for row in csv.DictReader(file)
        ]


REJECTED_ROWS = {
    "empty text": (",Positive", "empty text", "", "Positive"),
    "blank text": ('" \u00a0\t",Positive', "empty text", "", "Positive"),
    "invisible text": ("\u200b\u2060,Positive", "empty text", "\u200b\u2060", "Positive"),
    "too long a text": (f"{'a' * 100_001},Positive", "unusable text", "a" * 32_000 + "…", "Positive"),
    "missing label": ("fine,", "missing label", "fine", ""),
    "invisible label": ("fine,\u200b", "missing label", "fine", "\u200b"),
    "label of a missing value": ("fine,NaN", "missing label", "fine", "NaN"),
    "spreadsheet error": ("#NAME?,Positive", "spreadsheet error", "#NAME?", "Positive"),
    "spreadsheet error as label": ("fine,#N/A", "spreadsheet error", "fine", "#N/A"),
    "spreadsheet error in German": ("#WERT!,Positive", "spreadsheet error", "#WERT!", "Positive"),
    "spreadsheet error of LibreOffice": ("Err:502,Positive", "spreadsheet error", "Err:502", "Positive"),
    "field missing": ("good", "wrong number of fields", "good", ""),
    "unquoted comma": ("good, cheap,Positive", "wrong number of fields", "good, cheap,Positive", ""),
    "too many fields": ("a," * 200 + "b", "wrong number of fields", "a," * 100 + "…", ""),
    "label in one file": ("so so,Neutral", "class too small", "so so", "Neutral"),
    "contradiction of two": ("training text 1,Negative", "contradictory labels", "training text 1", "Negative"),
}
"""A row, the reason why it is rejected, and its text and label in the list."""


@pytest.mark.parametrize("row", REJECTED_ROWS)
def test_a_row_that_cannot_be_used_is_rejected_alone(settings: Settings, row: str) -> None:
    content, reason, text, label = REJECTED_ROWS[row]
    settings.train_data.write_text(f"{HEADER}{TRAIN}{content}\nlast one,Positive\n", encoding="utf-8")
    dataset = load_dataset(settings)
    lost = 2 if reason == "contradictory labels" else 1
    assert dataset.counts["train"] == RowCounts(42, 42 - lost, 0, {reason: lost})
    assert dataset.train.texts[-1] == "last one"
    assert dataset.labels == LABELS
    (file, number, told, shown, its_label) = rejected(settings)[-1]
    assert (file, number) == ("train.csv", 42)
    assert told.partition(":")[0] == reason
    assert (shown, its_label) == (text, label)
    (note,) = (note for note in dataset.notes if "rejected" in note)
    assert note == f"train.csv: rejected {lost} of 42 rows ({reason} {lost}). state/rejected_rows.csv lists them"


@pytest.mark.parametrize("text", ["#great", "#N/A is what I got", "N/A", "nan", "#WOW!", "Err: no", "-1", "😀", "null"])
def test_what_only_looks_like_a_fault_is_a_text(settings: Settings, text: str) -> None:
    settings.train_data.write_text(f"{HEADER}{TRAIN}{text},Positive\n", encoding="utf-8")
    assert load_dataset(settings).train.texts[-1] == text
    assert rejected(settings) == []


def test_rows_with_a_good_file_have_no_notes(settings: Settings) -> None:
    dataset = load_dataset(settings)
    assert dataset.train == LabelledTexts(*map(list, zip(*TRAIN_ROWS, strict=True)))
    assert dataset.val == LabelledTexts(*map(list, zip(*VAL_ROWS, strict=True)))
    assert dataset.labels == LABELS
    assert dataset.notes == []
    assert dataset.counts == {"train": RowCounts(40, 40, 0, {}), "val": RowCounts(10, 10, 0, {})}


@pytest.mark.parametrize(
    ("labels", "kept", "repetitions", "lost"),
    [
        ("PPN", "Positive", 1, 1),
        ("NPP", "Positive", 1, 1),
        ("PPPN", "Positive", 2, 1),
        ("PN", None, 0, 2),
        ("PPNN", None, 0, 4),
        ("PPPNN", None, 0, 5),
        ("PPNC", None, 0, 4),
        ("PPPPNC", "Positive", 3, 2),
        ("PPPP", "Positive", 3, 0),
    ],
)
def test_two_thirds_decide_on_a_contradiction(
    settings: Settings, labels: str, kept: str | None, repetitions: int, lost: int
) -> None:
    names = {"P": "Positive", "N": "Negative", "C": "negativ"}
    rows = [("debated", names[label]) for label in labels]
    settings.train_data.write_text(HEADER + TRAIN + lines(rows))
    dataset = load_dataset(with_(settings, max_rejected=0.5))
    counts = dataset.counts["train"]
    assert (counts.repetitions, sum(counts.rejected.values())) == (repetitions, lost)
    assert dict(zip(dataset.train.texts, dataset.train.labels, strict=True)).get("debated") == kept
    assert counts.kept == len(dataset.train.texts)
    assert [row[1] for row in rejected(settings)] == [
        42 + place for place, label in enumerate(labels) if kept is None or names[label] != kept
    ]


def test_a_class_too_small_to_judge_is_left_out_of_both_files(settings: Settings) -> None:
    neutral = [(f"neutral {i}", "Neutral") for i in range(12)]
    settings.train_data.write_text(HEADER + TRAIN + lines(neutral))
    settings.val_data.write_text(HEADER + VAL * 1 + lines([("so so", "Neutral")]))
    dataset = load_dataset(with_(settings, max_rejected=0.3))
    assert dataset.labels == LABELS
    assert dataset.counts["train"].rejected == {"class too small": 12}
    assert dataset.counts["val"].rejected == {"class too small": 1}
    assert (
        "The label 'Neutral' has 12 texts in train.csv and 1 in val.csv, and is left out: a label needs at least 7 "
        "texts in train.csv and 3 in val.csv" in dataset.notes
    )


def test_the_note_on_a_label_in_one_file_says_what_was_meant(settings: Settings) -> None:
    settings.train_data.write_text(HEADER + TRAIN + "good,positve\n")
    assert any(note.endswith("; did you mean 'Positive'?") for note in load_dataset(settings).notes)


def test_one_label_cannot_be_learned(settings: Settings) -> None:
    settings.train_data.write_text(HEADER + lines([(text, "Positive") for text, _ in TRAIN_ROWS]) + "bad,Negative\n")
    assert problems_of(settings) == [
        "train.csv and val.csv: two labels are needed, each with at least 7 texts in train.csv and 3 in val.csv. "
        "'Negative' has 1 text in train.csv and 5 in val.csv; 'Positive' has 40 texts in train.csv and 5 in val.csv"
    ]
    assert rejected(settings) == []


def test_exchanged_columns_are_recognised(settings: Settings) -> None:
    for texts in (20, 1001):
        rows = [(f"text {i}", ("Positive", "Negative")[i % 2]) for i in range(texts)]
        settings.train_data.write_text("label,text\n" + lines(rows))
        assert problems_of(settings) == [
            f"train.csv: the column 'label' has {texts:,} different labels, and 'text' only 2 texts. If the columns "
            "are swapped, set SENTIMENT_TEXT_COLUMN=label and SENTIMENT_LABEL_COLUMN=text"
        ]


def test_texts_in_the_label_column_are_recognised(settings: Settings) -> None:
    for texts in (20, 1001):
        settings.train_data.write_text(HEADER + lines([(f"text {i}", f"another {i}") for i in range(texts)]))
        (problem,) = problems_of(settings)
        assert "Does the label column contain texts? Set SENTIMENT_LABEL_COLUMN to another column" in problem
        assert len(problem) < 1000


def test_too_many_rejected_rows_are_an_error_with_reasons_and_list(settings: Settings) -> None:
    settings.train_data.write_text(HEADER + TRAIN + ",Positive\n" * 3 + "fine,\n" + "a,b,c\n")
    assert problems_of(settings) == [
        "train.csv: 5 of 45 rows cannot be used (empty text 3, missing label 1, wrong number of fields 1), more than "
        "the share SENTIMENT_MAX_REJECTED=0.1 allows. state/rejected_rows.csv lists them. Repair the rows, or raise "
        "SENTIMENT_MAX_REJECTED."
    ]
    assert [row[1] for row in rejected(settings)] == [42, 43, 44, 45, 46]
    assert len(load_dataset(with_(settings, max_rejected=0.12)).train.texts) == 40


def test_the_problems_of_both_files_are_told_at_once(settings: Settings) -> None:
    settings.train_data.unlink()
    settings.val_data.write_text(HEADER + ",Positive\n")
    train, val = problems_of(settings)
    assert "no such file" in train
    assert "SENTIMENT_TRAIN_DATA" in train
    assert val.startswith("val.csv: 1 of 1 row cannot be used (empty text 1)")


@pytest.mark.parametrize("content", ["", "\n\n", HEADER])
def test_a_file_without_rows_is_an_error(settings: Settings, content: str) -> None:
    settings.train_data.write_text(content)
    (problem,) = problems_of(settings)
    assert "train.csv" in problem


def test_one_file_for_both_is_refused(settings: Settings) -> None:
    (problem,) = problems_of(with_(settings, val_data=settings.train_data))
    assert problem.startswith("train.csv is both the training and the validation file.")


def test_a_validation_text_is_removed_from_training(settings: Settings) -> None:
    settings.train_data.write_text(HEADER + TRAIN + "training text 1,Positive\nvalidation text 3,Negative\n")
    dataset = load_dataset(settings)
    assert dataset.train == LabelledTexts(*map(list, zip(*TRAIN_ROWS, strict=True)))
    assert len(dataset.val.texts) == len(VAL_ROWS)
    assert dataset.notes == [
        "train.csv: removed 1 text from training, because the text is also in val.csv (first: row 43 is row 5 there)",
        "train.csv: left out 1 row with the text and label of another row",
    ]


def test_spellings_of_one_label_become_the_most_frequent(settings: Settings) -> None:
    rows = [
        (text, ("NEGATIVE", "negative", "negative ")[i % 3] if label == "Negative" else f"\u200b{label}")
        for i, (text, label) in enumerate(TRAIN_ROWS)
    ]
    settings.train_data.write_text(HEADER + lines(rows), encoding="utf-8")
    settings.val_data.write_text(HEADER + VAL.replace("Positive", "1.0").replace("Negative", "ＮＥＧＡＴＩＶＥ"))
    settings.train_data.write_text(settings.train_data.read_text().replace("\u200bPositive", "1"))
    dataset = load_dataset(settings)
    assert dataset.labels == ("1", "negative")
    assert dataset.notes == [
        "The label '1' is also written '1.0' (5 rows); used one spelling",
        "The label 'negative' is also written 'NEGATIVE' (7 rows), 'ＮＥＧＡＴＩＶＥ' (5 rows); used one spelling",
    ]


def test_codes_get_names(settings: Settings) -> None:
    for path in (settings.train_data, settings.val_data):
        path.write_text(path.read_text().replace("Negative", "0").replace("Positive", "4"))
    dataset = load_dataset(settings)
    assert dataset.labels == ("0", "4")
    assert dataset.notes == [
        "The labels 0, 4 look like codes. To give them names, set SENTIMENT_LABEL_NAMES=0=Negative,4=Positive"
    ]
    named = load_dataset(with_(settings, label_names="0=Negative, 4=Positive"))
    assert named.labels == LABELS
    assert named.notes == []


@pytest.mark.parametrize(
    ("codes", "proposed"),
    [
        (("0", "1"), "0=Negative,1=Positive"),
        (("-1", "+1"), "-1=Negative,1=Positive"),
        (("-1", "0", "1"), "-1=Negative,0=Neutral,1=Positive"),
        (("0.0", "1.0", "2.0"), "0=Negative,1=Neutral,2=Positive"),
        (("neg", "POS"), "neg=Negative,pos=Positive"),
        (("1", "2", "3", "4", "5"), "1=Negative,2=Negative,3=Neutral,4=Positive,5=Positive"),
        (("good", "bad"), None),
        (("0", "7"), None),
    ],
)
def test_codes_of_known_schemes_are_recognised(
    settings: Settings, codes: tuple[str, ...], proposed: str | None
) -> None:
    settings.train_data.write_text(HEADER + lines([(f"{i}", codes[i % len(codes)]) for i in range(100)]))
    notes = load_dataset(one_file(settings)).notes
    told = [note.rpartition("SENTIMENT_LABEL_NAMES=")[2] for note in notes if "look like codes" in note]
    assert told == ([proposed] if proposed else [])


def test_codes_in_one_file_and_names_in_the_other_are_refused_with_the_names_to_set(settings: Settings) -> None:
    settings.val_data.write_text(settings.val_data.read_text().replace("Negative", "0").replace("Positive", "1"))
    with pytest.raises(DatasetError) as refused:
        load_dataset(settings)
    proposal = "The labels 0, 1 look like codes. To give them names, set SENTIMENT_LABEL_NAMES=0=Negative,1=Positive"
    assert refused.value.problems[1:] == [proposal]
    assert load_dataset(with_(settings, label_names="0=Negative,1=Positive")).labels == LABELS


def test_several_codes_may_have_one_name(settings: Settings) -> None:
    settings.train_data.write_text(HEADER + lines([(f"{i}", str(1 + i % 5)) for i in range(100)]))
    settings = with_(one_file(settings), label_names="1=Negative,2=Negative,4=Positive,5=Positive,9=Great")
    dataset = load_dataset(settings)
    assert dataset.labels == ("3", "Negative", "Positive")
    assert dataset.notes[-2:] == [
        "No row has a label that SENTIMENT_LABEL_NAMES names: 9",
        "SENTIMENT_LABEL_NAMES gives no name to '3', which clients then get as a label. Add a name, such as 3=Neutral",
    ]


@pytest.mark.parametrize("names", ["0", "0=", "=Negative", "0=Negative,0=Positive", "0=Negative;4=Positive=1,x"])
def test_wrong_names_of_labels_are_refused(names: str) -> None:
    with pytest.raises(ValueError, match="label_names"):
        Settings(label_names=names)


def test_labels_may_be_numbers_and_many(settings: Settings) -> None:
    for path, count in ((settings.train_data, MIN_TRAIN_ROWS), (settings.val_data, MIN_VAL_ROWS)):
        path.write_text(
            HEADER + lines([(f"{path} {i} {label}", str(label)) for label in range(5, 10) for i in range(count)])
        )
    assert load_dataset(settings).labels == ("5", "6", "7", "8", "9")


def test_fingerprint_follows_the_content_and_not_the_order(settings: Settings) -> None:
    fingerprint = load_dataset(settings).fingerprint
    shuffled = random.Random(0).sample(TRAIN_ROWS, len(TRAIN_ROWS))
    settings.train_data.write_text(HEADER + lines(shuffled) + lines(TRAIN_ROWS[:1]) + ",Positive\n")
    assert load_dataset(settings).fingerprint == fingerprint

    changed = {fingerprint}
    for content in (TRAIN.replace("text 0", "text 99"), TRAIN + "good,Positive\n", TRAIN + "good,Negative\n"):
        settings.train_data.write_text(HEADER + content)
        changed.add(load_dataset(settings).fingerprint)
    assert len(changed) == 4


def test_a_tenth_of_one_file_is_held_out(settings: Settings) -> None:
    rows = [(f"text {i}", ("Negative", "Neutral", "Positive", "Positive")[i % 4]) for i in range(4_000)]
    settings.train_data.write_text(HEADER + lines(rows))
    dataset = load_dataset(one_file(settings))
    assert not {*dataset.train.texts} & {*dataset.val.texts}
    assert {**dict(zip(dataset.train.texts, dataset.train.labels, strict=True))} | {
        **dict(zip(dataset.val.texts, dataset.val.labels, strict=True))
    } == dict(rows)
    for label, whole in (("Negative", 1_000), ("Neutral", 1_000), ("Positive", 2_000)):
        assert 0.07 * whole < dataset.val.labels.count(label) < 0.13 * whole
    assert dataset.counts["train"].kept == 4_000
    assert dataset.counts["held_out"].kept == len(dataset.val.texts), "they are no rows of a file of their own"
    assert dataset.counts.keys() == {"train", "held_out"}
    assert dataset.notes == [
        f"There is no validation file (val_sentiment_data.csv): held out {len(dataset.val.texts)} texts of train.csv, "
        "about a tenth of each label and at least 5 if there are enough, chosen by the text's hash"
    ]


def test_the_notes_are_logged_once_and_what_is_usual_is_no_warning(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.train_data.write_text(HEADER + lines([(f"text {i}", LABELS[i % 2]) for i in range(40)]) + ",Positive\n")
    caplog.set_level("INFO", logger="trainer.dataset")
    for _ in range(2):
        load_dataset(one_file(settings)).log_notes()
    assert [(record.levelname, record.getMessage().split()[0]) for record in caplog.records] == [
        ("INFO", "There"),
        ("WARNING", f"{settings.train_data}:"),
    ]


def test_the_smallest_file_that_trains_alone(settings: Settings) -> None:
    rows = [(f"text {i}", LABELS[i % 2]) for i in range(20)]
    settings.train_data.write_text(HEADER + lines(rows))
    dataset = load_dataset(one_file(settings))
    assert [dataset.val.labels.count(label) for label in LABELS] == [3, 3]
    settings.train_data.write_text(HEADER + lines(rows[:-1]))
    (problem,) = problems_of(one_file(settings))
    assert "each with at least 10 texts, 3 of them for validation" in problem


def test_a_validation_file_that_is_named_must_be_there(settings: Settings) -> None:
    settings.val_data.unlink()
    (problem,) = problems_of(settings)
    assert "val.csv" in problem
    assert "no such file" in problem


def test_the_list_has_the_rows_in_the_order_of_the_files(settings: Settings) -> None:
    """Contradictions and small classes are found when all rows have been read."""
    settings.train_data.write_text(f"{HEADER}debated,Positive\nso so,Neutral\n{TRAIN},Positive\ndebated,Negative\n")
    settings.val_data.write_text(f"{HEADER}also so so,Neutral\n{VAL}fine\n")
    load_dataset(with_(settings, max_rejected=0.5))
    assert [(file, row, reason.partition(":")[0]) for file, row, reason, _, _ in rejected(settings)] == [
        ("train.csv", 2, "contradictory labels"),
        ("train.csv", 3, "class too small"),
        ("train.csv", 44, "empty text"),
        ("train.csv", 45, "contradictory labels"),
        ("val.csv", 2, "class too small"),
        ("val.csv", 13, "wrong number of fields"),
    ]


def test_the_list_is_private_and_runs_no_formula(settings: Settings) -> None:
    settings.train_data.write_text(f'{HEADER}{TRAIN}"=1+1, ""a""\r\nb",\n"@x",\n"-2+x",\n"-2",\n', encoding="utf-8")
    load_dataset(settings)
    assert [row[3] for row in rejected(settings)] == ['\'=1+1, "a"\r\nb', "'@x", "'-2+x", "-2"]
    path = settings.state_dir / "rejected_rows.csv"
    assert path.stat().st_mode & 0o077 == 0
    settings.train_data.write_text(HEADER + TRAIN)
    load_dataset(settings)
    assert rejected(settings) == []
    assert [file.name for file in settings.state_dir.iterdir()] == ["rejected_rows.csv"]


def test_a_list_that_cannot_be_written_is_told(settings: Settings) -> None:
    settings.state_dir.write_text("a file")
    with pytest.raises(Exception, match=r"rejected_rows\.csv cannot be written: .* SENTIMENT_STATE_DIR"):
        load_dataset(settings)
    assert len(load_dataset(settings, write_list=False).train.texts) == 40


def test_files_of_a_retraining_leave_the_list_of_the_data_as_it_is(settings: Settings) -> None:
    settings.train_data.write_text(HEADER + TRAIN + ",Positive\n")
    load_dataset(settings)
    own = settings.state_dir / "retraining" / "1"
    own.mkdir(parents=True)
    (own / "train.csv").write_text(HEADER + TRAIN + "fine,\n")
    load_dataset(with_(settings, train_data=own / "train.csv"))
    assert [row[2] for row in rejected(settings)] == ["empty text"]
    assert (own / "rejected_rows.csv").exists()


def test_feedback_is_read_by_the_same_rules(settings: Settings) -> None:
    file = Path("feedback.csv")
    file.write_text(
        HEADER + "good,positive\nbad,0\n,Positive\ndebated,Positive\ndebated,Negative\nwhat,Neutral\n" + VAL
    )
    settings = with_(settings, label_names="0=Negative", max_rejected=0.3)
    read = read_labelled_texts(file, LABELS, settings)
    assert (read.texts.texts[:2], read.texts.labels[:2]) == (["good", "bad"], ["Positive", "Negative"])
    assert read.counts == RowCounts(16, 12, 0, {"contradictory labels": 2, "empty text": 1, "unknown label": 1})
    with read.rejected_list.open(newline="") as rows:
        assert [row["reason"] for row in csv.DictReader(rows)][-1] == (
            "unknown label: 'Neutral' is not among the model's labels"
        )
    with pytest.raises(DatasetError, match="4 of 16 rows cannot be used"):
        read_labelled_texts(file, LABELS, with_(settings, max_rejected=0.1))
    assert not (settings.state_dir / "rejected_rows.csv").exists()


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    .map(str.strip)
    .filter(lambda text: text_fault(text) is None),
    unique=True,
    min_size=2 * (MIN_TRAIN_ROWS + MIN_VAL_ROWS),
    max_size=40,
)


@given(texts=TEXTS)
def test_any_unicode_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    directory = tmp_path_factory.mktemp("any")
    labels = [LABELS[i % 2] for i in range(len(texts))]
    cut = 2 * MIN_VAL_ROWS
    parts = {"val.csv": LabelledTexts(texts[:cut], labels[:cut]), "train.csv": LabelledTexts(texts[cut:], labels[cut:])}
    for name, part in parts.items():
        with (directory / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(zip(part.texts, part.labels, strict=True))
    settings = Settings(
        train_data=directory / "train.csv", val_data=directory / "val.csv", state_dir=directory / "state"
    )
    dataset = load_dataset(settings)
    assert dataset.train == parts["train.csv"]
    assert dataset.val == parts["val.csv"]
    assert dataset.notes == []
