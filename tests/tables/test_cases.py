"""Each case is read as the rules say: by `open_labelled`, and by the blocks of a scoring job."""

import json
import logging
from pathlib import Path

import pytest

from scoring.inputs import find_inputs
from scoring.job import Columns, Job
from scoring.reading import check_input, read
from tables.blocks import Place
from tables.errors import TableError
from tables.labelled import FAULTS, ColumnChoice, LabelledRow, open_labelled

CASES = Path(__file__).parent / "cases"
EXPECTED = json.loads((CASES / "expected.json").read_text(encoding="utf-8"))
FAULTY = {
    "unclosed_quote.csv": (7, "broken quoting"),
    "unquoted_comma.csv": (42, "wrong number of fields"),
    "too_few_fields.csv": (42, "wrong number of fields"),
    "damaged.jsonl": (21, "not JSON"),
}
"""The row that cannot be read, and why."""
FURTHER = {
    "stray_quote.csv": ['The 5" screen is great'],
    "unclosed_quote.csv": ["Nice, but heavy"],
    "windows_1252.csv": ["The café table wobbles – I’d return it for 20 €.", "Très bon appareil, déjà conseillé."],
    "utf_16.csv": ["Schöne Lampe, gutes Licht."],
    "no_header.csv": ["The first row is data."],
    "cr_inside.csv": ["First line\r\r\nsecond line\rthird"],
    "nul_byte.csv": ["Broken byte but readable"],
    "empty_text.csv": ["", "", "\u200b"],
    "missing_label.csv": ["No opinion given here.", "Another one without."],
    "rare_class.csv": ["It exists.", "A box.", "Received."],
    "spreadsheet_errors.csv": ["#NAME?", "#NAME?", "#REF!"],
    "contradiction.csv": ["It is what it is."] * 2 + ["Good value overall."] * 4,
}
"""Texts that a case has besides the 40 that nearly all have."""
NOTED = {
    "windows_1252.csv": "read as windows-1252, the encoding that was detected",
    "utf_16.csv": "read as utf-16",
    "semicolon.csv": "the delimiter is a semicolon",
    "pipe.csv": "the delimiter is a vertical bar",
    "other_names.csv": "column 'review' is used as the text",
    "header_spelling.csv": "column ' Text ' is used as the text",
    "no_header.csv": "the first row is data, because columns are chosen by position",
    "nul_byte.csv": "1 NUL character removed",
}


def choice_of(case: str) -> ColumnChoice:
    settings = EXPECTED[case].get("settings", {})
    return ColumnChoice(settings.get("SENTIMENT_TEXT_COLUMN"), settings.get("SENTIMENT_LABEL_COLUMN"))


def rows_of(case: str) -> list[LabelledRow]:
    with open_labelled(CASES / case, choice_of(case)) as file:
        return list(file.rows())


USUAL = [(row.text, row.label) for row in rows_of("pipe.csv")]


@pytest.mark.parametrize("case", EXPECTED)
def test_labelled_rows(case: str) -> None:
    with open_labelled(CASES / case, choice_of(case)) as file:
        rows = list(file.rows())
    faulty = [(row.row, row.fault.partition(":")[0]) for row in rows if row.fault]
    assert faulty == ([FAULTY[case]] if case in FAULTY else [])
    assert {fault for _, fault in faulty} <= set(FAULTS)
    if case in NOTED:
        assert NOTED[case] in file.notes
    expected = EXPECTED[case]
    if "kept" in expected:
        assert len(rows) == expected["kept"] + expected["rejected"] + expected["repetitions"]
    if case in ("dollar_labels.csv", "mostly_bad.csv"):
        return
    texts = [row.text for row in rows if not row.fault]
    usual = [text for text in texts if text not in FURTHER.get(case, [])]
    assert [text for text in texts if text in FURTHER.get(case, [])] == FURTHER.get(case, [])
    assert usual == [text for text, _ in USUAL]
    if case not in ("label_spelling.csv", "numeric_labels.csv"):
        labels = [row.label for row in rows if row.text in usual]
        assert labels == [label for _, label in USUAL]


@pytest.mark.parametrize("case", EXPECTED)
def test_blocks_of_a_scoring_job(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = Columns(choice_of(case).text, ("predicted_label", "score", "version"))
    (file,) = find_inputs([str(CASES / case)], tmp_path / "out.csv")
    if case == "ambiguous_names.csv":
        with pytest.raises(TableError, match=r"'title', 'body' could all be the text. Set --text-column"):
            check_input(file, Columns(None, columns.added))
    check_input(file, columns)
    output = "out.jsonl" if case.endswith(".jsonl") else "out.csv"
    job = Job((file,), tmp_path / output, columns, 1, 4_096)
    with caplog.at_level(logging.INFO):
        blocks = [source.block for source in read(job, 0, Place())]
    assert ("1 NUL character removed" in caplog.text) is (case == "nul_byte.csv")
    rows = rows_of(case)
    first = 2 if case.partition(".")[2] != "jsonl" and case != "no_header.csv" else 1
    unreadable = {row.row - first + 1: row.fault for row in rows if row.fault}
    rejected = {row.row: row.reason for block in blocks for row in block.rejected}
    empty = {row.row - first + 1 for row in rows if not row.fault and row.text in ("", "\u200b")}
    assert rejected.keys() == unreadable.keys() | empty
    assert unreadable.items() <= rejected.items()
    readable = [row.text for row in rows if not row.fault and row.text not in ("", "\u200b")]
    assert [text.strip() for block in blocks for text in block.texts] == readable


@pytest.mark.parametrize("case", [case for case, expected in EXPECTED.items() if "error_names" in expected])
def test_errors_about_columns(case: str) -> None:
    if case == "mostly_bad.csv":
        assert len(rows_of(case)) == 35
        return
    with pytest.raises(TableError) as raised, open_labelled(CASES / case, ColumnChoice()):
        pass
    for name in EXPECTED[case]["error_names"]:
        assert name in str(raised.value)
