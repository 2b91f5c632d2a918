import csv
import gzip
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset import MIN_TRAIN_ROWS, MIN_VAL_ROWS, DatasetError, LabelledTexts, load_dataset

LABELS = ("Negative", "Positive")
TRAIN_ROWS = [(f"training text {i}", LABELS[i % 2]) for i in range(2 * MIN_TRAIN_ROWS)]
VAL_ROWS = [(f"validation text {i}", LABELS[i % 2]) for i in range(2 * MIN_VAL_ROWS)]


def lines(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{text},{label}\n" for text, label in rows)


HEADER = "text,label\n"
TRAIN = lines(TRAIN_ROWS)
"""Good rows; one that is added after the column names and them is row 22."""
VAL = lines(VAL_ROWS)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two good files, named in messages as train.csv and val.csv."""
    monkeypatch.chdir(tmp_path)
    train, val = Path("train.csv"), Path("val.csv")
    train.write_text(HEADER + TRAIN)
    val.write_text(HEADER + VAL)
    return train, val


def problems_of(paths: tuple[Path, Path]) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load_dataset(*paths)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


WRONG_TRAINING_FILES = {
    "empty": (b"", "is empty; its first row must name the columns text and label"),
    "blank lines only": (b"\xef\xbb\xbf\n\n  \n", "is empty; its first row must name the columns text and label"),
    "header only": (HEADER, "has column names but no rows under them"),
    "no header": (TRAIN, ", row 1: there is no column text; the columns are 'training text 0', 'Negative'"),
    "column missing": (
        "text,sentiment\n" + TRAIN,
        ", row 1: there is no column label; the columns are 'text', 'sentiment'",
    ),
    "column twice": ("text,label,Text \n", ", row 1: 2 columns are named text; keep one"),
    "semicolons": (
        (HEADER + TRAIN).replace(",", ";"),
        ", row 1: there is no column text; the columns are 'text;label'; separate the columns with commas, not ';'",
    ),
    "tabs": (
        (HEADER + TRAIN).replace(",", "\t"),
        ", row 1: there is no column label; the columns are 'text\\tlabel'; separate the columns with commas, "
        "not '\\t'",
    ),
    "empty text": (HEADER + TRAIN + " ,Positive\n", ", row 22, column text: empty"),
    "missing label": (HEADER + TRAIN + "fine,\n", ", row 22, column label: no label for 'fine'"),
    "unquoted comma": (
        HEADER + TRAIN + "good, cheap,Positive\n",
        ", row 22: 3 fields under 2 column names; put a text with commas in double quotes",
    ),
    "field missing": (
        HEADER + TRAIN + "good\n",
        ", row 22: 1 field under 2 column names; put a text with commas in double quotes",
    ),
    "unclosed quote": (
        HEADER + TRAIN + '"good,Positive\nbad,Negative\n',
        ", row 22: a double quote that opens here is never closed",
    ),
    "quote within quotes": (
        HEADER + TRAIN + '"a "good" one",Positive\n',
        ', row 22: a double quote inside a quoted text must be doubled (""), or one is missing',
    ),
    "contradiction": (
        HEADER + TRAIN + "training text 1,Negative\n",
        ", row 22, column label: 'training text 1' is 'Negative' here but 'Positive' in row 3; keep one of them",
    ),
    "contradiction below quoted line breaks": (
        HEADER + '"two\nlines",Positive\n\n' + TRAIN + '"two\nlines",Negative\n',
        ", row 24 (line 25), column label: 'two\\nlines' is 'Negative' here but 'Positive' in row 2; keep one of them",
    ),
    "Windows-1252": (
        (HEADER + TRAIN + "schön,Positive\n").encode() + "très bon,Positive\n".encode("cp1252"),
        f", row 23: byte 0xe8 at offset {len((HEADER + TRAIN + 'schön,Positive_tr').encode())} of the file is not "
        "UTF-8 (in Windows-1252 or Latin-1 it would be 'è'); save the file in UTF-8",
    ),
    "UTF-16": ((HEADER + TRAIN).encode("utf-16"), ": is UTF-16 or binary, not UTF-8; save it as CSV in UTF-8"),
    "UTF-16 without a mark": (
        (HEADER + TRAIN).encode("utf-16-be"),
        ": is UTF-16 or binary, not UTF-8; save it as CSV in UTF-8",
    ),
    "workbook": (b"PK\x03\x04\x14\0", ": is an Excel workbook or a zip archive; save it as CSV in UTF-8"),
    "gzip": (gzip.compress(b"text,label"), ": is compressed with gzip; save it as CSV in UTF-8"),
    "NUL byte": (
        HEADER + TRAIN + "go\0od,Positive\n",
        f", row 22: there is a NUL byte at offset {len(HEADER + TRAIN) + 2} of the file; remove it",
    ),
    "label in one file only": (
        HEADER + TRAIN + lines([(f"neutral {i}", "Neutral") for i in range(10)]),
        ", row 22, column label: 'Neutral' is not in val.csv",
    ),
    "misspelt label": (
        HEADER + TRAIN + "good,positve\n",
        ", row 22, column label: 'positve' is not in val.csv; did you mean 'Positive'?",
    ),
    "label in another case": (
        HEADER + TRAIN + "good,positive\n",
        ", row 22, column label: 'positive' is not in val.csv; it differs from 'Positive' by letter case or white "
        "space only",
    ),
    "small class": (
        HEADER + TRAIN.replace("training text 0,Negative\n", ""),
        ", column label: 'Negative' has 9 rows; at least 10 are needed here",
    ),
    "class small without validation texts": (
        HEADER + TRAIN.replace("training text 0", "validation text 0"),
        ", column label: 'Negative' has 9 rows, 1 repetition of validation texts taken out; at least 10 are needed "
        "here",
    ),
    "columns exchanged": (
        "label,text\n" + lines([(f"text {i}", "Positive") for i in range(1001)]),
        ", column label: 1,001 different labels; are the texts there?",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG_TRAINING_FILES.values(), ids=WRONG_TRAINING_FILES.keys())
def test_wrong_training_file_is_refused(paths: tuple[Path, Path], content: str | bytes, message: str) -> None:
    paths[0].write_bytes(content if isinstance(content, bytes) else content.encode())
    assert any(problem.startswith("train.csv") and problem.endswith(message) for problem in problems_of(paths))


@pytest.mark.parametrize("kind", ["missing", "directory", "unreadable"])
def test_file_that_cannot_be_read_is_refused(paths: tuple[Path, Path], kind: str) -> None:
    train, _ = paths
    train.unlink()
    if kind == "directory":
        train.mkdir()
    elif kind == "unreadable":
        train.symlink_to(train)  # root may read whatever the permissions say, but not a link to itself
    assert (
        problems_of(paths)
        == {
            "missing": ["train.csv: no such file; SENTIMENT_TRAIN_DATA and SENTIMENT_VAL_DATA name the files"],
            "directory": ["train.csv: is a directory; name a CSV file"],
            "unreadable": ["train.csv: cannot be read: Too many levels of symbolic links"],
        }[kind]
    )


def test_one_file_for_both_is_refused(paths: tuple[Path, Path]) -> None:
    assert problems_of((paths[0], paths[0])) == [
        "train.csv: is both the training and the validation data; name two files"
    ]


def test_a_single_label_is_refused(paths: tuple[Path, Path]) -> None:
    paths[0].write_text(HEADER + lines([(text, "Positive") for text, _ in TRAIN_ROWS]))
    paths[1].write_text(HEADER + lines([(text, "Positive") for text, _ in VAL_ROWS]))
    assert problems_of(paths) == [
        "train.csv, column label: only 'Positive'; there must be two or more",
        "val.csv, column label: only 'Positive'; there must be two or more",
    ]


def test_labels_that_look_alike_in_both_files_are_refused(paths: tuple[Path, Path]) -> None:
    for path in paths:
        path.write_text(path.read_text() + lines([(f"{path} {i}", "very  good") for i in range(10)]))
        path.write_text(path.read_text() + lines([(f"{path} more {i}", "Very good") for i in range(10)]))
    told = "column label: 'very  good' and 'Very good' differ by letter case or white space only; write them alike"
    assert problems_of(paths) == [f"train.csv, {told}", f"val.csv, {told}"]


def test_validation_file_has_its_own_smallest_class(paths: tuple[Path, Path]) -> None:
    paths[1].write_text(HEADER + VAL.replace("validation text 0,Negative\n", ""))
    assert problems_of(paths) == ["val.csv, column label: 'Negative' has 4 rows; at least 5 are needed here"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            '"text"s,label\n' + TRAIN,
            'row 1: a double quote inside a quoted text must be doubled (""), or one is missing',
        ),
        (HEADER + "good\n", "row 2: 1 field under 2 column names; put a text with commas in double quotes"),
    ],
    ids=["damaged header", "no readable row"],
)
def test_one_mistake_is_told_once(paths: tuple[Path, Path], content: str, told: str) -> None:
    paths[0].write_text(content)
    assert problems_of(paths) == [f"train.csv, {told}"]


def test_rows_that_cannot_be_read_are_not_told_again_as_a_small_class(paths: tuple[Path, Path]) -> None:
    paths[0].write_text(HEADER + TRAIN.replace("text 0,", "text, 0,"))
    paths[1].write_text(HEADER + '"' + VAL.replace("text 0,", 'text" 0,'))
    assert problems_of(paths) == [
        "train.csv, row 2: 3 fields under 2 column names; put a text with commas in double quotes",
        'val.csv, row 2: a double quote inside a quoted text must be doubled (""), or one is missing',
    ]


def test_all_problems_of_both_files_are_told_at_once(paths: tuple[Path, Path]) -> None:
    paths[0].write_text(HEADER + TRAIN + ",Positive\nfine,\n,\nneutral,Neutral\n")
    paths[1].write_bytes(HEADER.encode() + b"caf\xe9,Positive\na,b,c\n" + VAL.encode())
    assert problems_of(paths) == [
        "train.csv, row 22, column text: empty",
        "train.csv, row 23, column label: no label for 'fine'",
        "train.csv, row 25, column label: 'Neutral' is not in val.csv",
        "val.csv, row 2: byte 0xe9 at offset 14 of the file is not UTF-8 (in Windows-1252 or Latin-1 it would be 'é'); "
        "save the file in UTF-8",
        "val.csv, row 3: 3 fields under 2 column names; put a text with commas in double quotes",
    ]


def test_problems_of_one_kind_are_counted_after_the_fifth(paths: tuple[Path, Path]) -> None:
    paths[0].write_text(HEADER + TRAIN + ",Positive\n" * 100_000)
    problems = problems_of(paths)
    assert problems[:5] == [f"train.csv, row {row}, column text: empty" for row in range(22, 27)]
    assert problems[5:] == ["train.csv: … and 99,995 more (empty text)"]


def test_field_size_limit_of_the_process_is_left_as_it_was(paths: tuple[Path, Path]) -> None:
    paths[0].write_text(HEADER + TRAIN + f"{'a' * 200_000},Positive\n")
    before = csv.field_size_limit(1000)
    try:
        assert load_dataset(*paths).train.texts[-1] == "a" * 200_000
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


def test_good_files_need_no_repair(paths: tuple[Path, Path]) -> None:
    dataset = load_dataset(*paths)
    assert dataset.train == LabelledTexts(*map(list, zip(*TRAIN_ROWS, strict=True)))
    assert dataset.val == LabelledTexts(*map(list, zip(*VAL_ROWS, strict=True)))
    assert dataset.labels == LABELS
    assert dataset.repairs == []


def test_repairs_are_made_and_told(paths: tuple[Path, Path]) -> None:
    paths[0].write_text("Text, LABEL\n" + TRAIN + "training text 1,Positive\n" + "validation text 3,Negative\n")
    dataset = load_dataset(*paths)
    assert dataset.train == LabelledTexts(*map(list, zip(*TRAIN_ROWS, strict=True)))
    assert len(dataset.val.texts) == len(VAL_ROWS)
    assert dataset.repairs == [
        "train.csv, row 1: column 'Text' is read as text",
        "train.csv, row 1: column 'LABEL' is read as label",
        "train.csv: 1 row taken out as repetitions (first: row 22 repeats row 3)",
        "train.csv: 1 row taken out of training, the text being in val.csv too (first: row 23 is row 5 there)",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEADER + TRAIN).encode(),
        (HEADER + TRAIN).replace("\n", "\r\n").encode(),
        (HEADER + TRAIN).replace("\n", "\r").encode(),
        (HEADER + TRAIN).replace("\n", "\n\n , \n").encode(),
        (HEADER + TRAIN).replace(",", " , ").encode(),
        (HEADER + TRAIN).rstrip().encode(),
        b"id,label,note,text\n" + "".join(f'7,{b},, "{a}"\n' for a, b in TRAIN_ROWS).encode(),
    ],
    ids=["byte order mark", "CRLF", "CR", "blank rows", "white space", "no last line end", "other columns"],
)
def test_form_of_the_file_changes_nothing(paths: tuple[Path, Path], content: bytes) -> None:
    plain = load_dataset(*paths)
    paths[0].write_bytes(content)
    assert load_dataset(*paths) == plain


def test_labels_may_be_numbers_and_many(paths: tuple[Path, Path]) -> None:
    for path, count in zip(paths, (MIN_TRAIN_ROWS, MIN_VAL_ROWS), strict=True):
        path.write_text(
            HEADER + lines([(f"{path} {i} {label}", str(label)) for label in range(5) for i in range(count)])
        )
    assert load_dataset(*paths).labels == ("0", "1", "2", "3", "4")


def test_fingerprint_follows_the_content_and_not_the_order(paths: tuple[Path, Path]) -> None:
    fingerprint = load_dataset(*paths).fingerprint
    shuffled = random.Random(0).sample(TRAIN_ROWS, len(TRAIN_ROWS))
    paths[0].write_text(HEADER + lines(shuffled) + lines(TRAIN_ROWS[:1]))
    assert load_dataset(*paths).fingerprint == fingerprint

    changed = {fingerprint}
    for content in (TRAIN.replace("text 0", "text 99"), TRAIN + "good,Positive\n", TRAIN + "good,Negative\n"):
        paths[0].write_text(HEADER + content)
        changed.add(load_dataset(*paths).fingerprint)
    assert len(changed) == 4


TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(str.strip).filter(bool),
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
    dataset = load_dataset(directory / "train.csv", directory / "val.csv")
    assert dataset.train == parts["train.csv"]
    assert dataset.val == parts["val.csv"]
    assert dataset.repairs == []
