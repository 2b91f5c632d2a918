"""A file on the view Try: its rows come back with label, score and version, and each row that does not is told."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console.uploaded_table import MOST_ROWS, read_table
from gateway.http.problems import ProblemError
from gateway.http.request_body import MAX_BODY_BYTES
from gateway.inference.batch_splitting import TextsRefusedError
from tests.gateway.console.conftest import INJECTED, PART, Page
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway

SCORE = "/console/score"
CASES = Path(__file__).parents[3] / "tables" / "cases"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CASES / "expected.json").read_text())
LEFT_OUT = {
    "empty_text.csv": 3,
    "unclosed_quote.csv": 1,
    "unquoted_comma.csv": 1,
    "too_few_fields.csv": 1,
    "damaged.jsonl": 1,
    "mostly_bad.csv": 15,
}
"""Rows without a text that can be read. Labels do not matter here, nor do repetitions."""


def send(console: Gateway, body: str | bytes, media_type: str = "text/csv", **asked: str) -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    return console.http.post(SCORE, params=asked, content=content, headers={**PART, "Content-Type": media_type})


def table_of(answer: httpx.Response) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    return list(csv.reader(io.StringIO(answer.text, newline="")))


def refused(answer: httpx.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    page = Page(answer)
    assert page.runs_nothing_but_files()
    return page.text


def test_each_row_comes_back_as_it_was_with_what_the_model_says(console: Gateway) -> None:
    sent = [["1", 'a good\r\nday, "really"'], ["=1+1", "a terrible 🙂"], ["", " good "]]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", "text"], *sent])
    answer = send(console, "\ufeff" + file.getvalue())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="scored.csv"'
    assert (answer.headers["x-rows"], answer.headers["x-model-version"]) == ("3", "1")
    header, *rows = table_of(answer)
    assert header == ["id", "text", "label", "score", "version"]
    assert [row[:2] for row in rows] == sent
    assert [row[2] for row in rows] == ["Positive", "Negative", "Positive"]
    assert all(0.5 <= float(row[3]) <= 1 and row[4] == "1" for row in rows)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_of_file_is_classified_as_expected(console: Gateway, name: str) -> None:
    expected = EXPECTED[name]
    suffix = "".join(Path(name).suffixes)
    content = (CASES / name).read_bytes()
    settings = expected.get("settings", {})
    if "SENTIMENT_TEXT_COLUMN" in settings:
        told = refused(send(console, content, suffix=suffix))
        words = [word.replace("SENTIMENT_TEXT_COLUMN", "Text column") for word in expected["error_names"]]
        assert all(word in told for word in words), told
    answer = send(console, content, suffix=suffix, column=settings.get("SENTIMENT_TEXT_COLUMN", ""))
    header, *rows = table_of(answer)
    left_out = LEFT_OUT.get(name, 0)
    all_rows = sum(expected.get(count, 0) for count in ("kept", "rejected", "repetitions"))
    if "error_names" in expected:
        all_rows = {"ambiguous_names.csv": 40, "no_header.csv": 41, "mostly_bad.csv": 35}[name]
    prefix = "predicted_" if "label" in [column.strip().casefold() for column in header[:-3]] else ""
    assert header[-3:] == [f"{prefix}label", f"{prefix}score", f"{prefix}version"]
    assert len(rows) == all_rows - left_out == int(answer.headers["x-rows"])
    assert {row[-3] for row in rows} <= {"Negative", "Positive"}
    assert int(answer.headers["x-rejected-rows"]) == left_out
    notes = json.loads(answer.headers["x-notes"])
    assert sum(note.startswith("line ") for note in notes) == left_out
    if name == "windows_1252.csv":
        assert any("windows-1252" in note for note in notes)
    assert ("1 NUL character removed" in notes) is (name == "nul_byte.csv")
    compressed = send(console, gzip.compress(content), suffix=f"{suffix}.gz".replace(".gz.gz", ".gz"))
    if "error_names" not in expected and not suffix.endswith(".gz"):
        assert table_of(compressed) == [header, *rows], "in the same way when compressed"


def test_fields_of_json_become_columns(console: Gateway) -> None:
    lines = [{"id": 1, "text": "good"}, {"text": "bad", "tags": ["a", None], "ok": True}]
    lines += [{"text": 3}, {"text": True}, {"text": ["good"]}, {"text": None}, {"tags": 1}]
    answer = send(console, "\n".join(map(json.dumps, lines)))
    header, *rows = table_of(answer)
    assert header == ["id", "text", "tags", "ok", "label", "score", "version"]
    assert [row[:4] for row in rows] == [["1", "good", "", ""], ["", "bad", '["a",null]', "true"]]
    faults = ("int", "bool", "list", "missing", "missing")
    assert json.loads(answer.headers["x-notes"]) == [
        f"line {line}: 'text' is {fault}" for line, fault in enumerate(faults, start=3)
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "The file is empty"),
        ("text\n", "file has no rows"),
        ("{}\n", "line 1 'text' is missing"),
        ("txt,id\ngood,1\n", "The columns are 'txt', 'id'. If the file has no header"),
        ("text,label,predicted_label\ngood,x,y\n", "column predicted_label already exists"),
        ("text,id\nbad\n", "line 2 wrong number of fields: 1 instead of 2"),
        ("text,id\n  ,1\n", "line 2 'text' is empty or only blanks"),
        (b"PK\x03\x04", "The file is an Excel workbook"),
        (b"PAR1", "The file is Parquet"),
        (gzip.compress(gzip.compress(b"text\ngood\n", mtime=0), mtime=0), "compressed twice"),
        (gzip.compress(b"text\ngood\n", mtime=0)[:-9], "cannot be read to its end"),
        (json.dumps({"text": "good", **dict.fromkeys(map(str, range(1_000)))}), "has 1,001 columns; at most 1,000"),
    ],
)
def test_a_file_of_which_nothing_can_be_classified_is_refused(console: Gateway, body: str | bytes, told: str) -> None:
    assert told in refused(send(console, body))


def test_of_many_faulty_rows_the_first_are_told_and_the_others_counted(console: Gateway) -> None:
    faulty = "id,text\n" + "1\n" * 30
    text = refused(send(console, faulty))
    assert "line 21 wrong number of fields" in text
    assert "line 22" not in text
    assert "has 10 more such rows" in text
    answer = send(console, faulty + "1,good\n")
    notes = json.loads(answer.headers["x-notes"])
    assert len(notes) == 21
    assert notes[-1] == "file: has 10 more such rows"


def test_notes_are_short_enough_for_any_proxy(console: Gateway) -> None:
    rows = "1, \n" * 30 + "1,good\n"
    answer = send(console, f"id,{'🙂' * 50}\n{rows}", column="🙂" * 50)
    assert answer.status_code == 200, answer.text
    assert len(answer.headers["x-notes"]) <= 3_000
    assert json.loads(answer.headers["x-notes"])[-1] == "…"


def test_what_was_in_the_file_is_escaped(console: Gateway) -> None:
    refused(send(console, f'"{INJECTED.replace(chr(34), chr(34) * 2)}"\ngood\n'))


def test_a_file_that_is_too_long_is_refused(console: Gateway, triton: FakeTriton) -> None:
    triton.calls.clear()
    assert f"over {MOST_ROWS:,} rows" in refused(send(console, "text\n" + "good\n" * (MOST_ROWS + 1)), 413)
    assert "too long" in refused(send(console, b"x" * (MAX_BODY_BYTES + 1)), 413)
    assert "after unpacking" in refused(send(console, gzip.compress(b"text\n" + b"x" * MAX_BODY_BYTES)), 413)
    assert not triton.calls


@pytest.mark.parametrize(
    "header", ["," * (MAX_BODY_BYTES - 20), ",".join(map(str, range(400_000)))], ids=["same", "many"]
)
def test_a_header_of_any_number_of_columns_is_told_at_once(console: Gateway, header: str) -> None:
    refused(send(console, f"{header}\n"))
    assert "no line end in its first 262,144 bytes" in refused(send(console, f"text,{header}\ngood\n"))
    assert "columns; at most 1,000 are read" in refused(send(console, f"text,{header[:100_000]}\ngood\n"))


def test_another_media_type_and_another_site_are_refused(console: Gateway) -> None:
    refused(send(console, "text\ngood\n", "application/x-www-form-urlencoded"), 415)
    headers = {"Content-Type": "text/csv", "Sec-Fetch-Site": "cross-site"}
    assert console.http.post(SCORE, content=b"text\ngood\n", headers=headers).status_code == 403


def test_where_the_model_refuses_a_text_its_line_is_told(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> object:
        raise TextsRefusedError({1: "it is too odd"})

    monkeypatch.setattr("gateway.inference.predictor.Predictor.predict_batch", fail)
    assert "line 3 the text is refused by the model: it is too odd" in refused(send(console, "text\ngood\nodd\n"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"text\n{text}".encode()))
def test_any_bytes_are_rows_or_a_problem(body: bytes) -> None:
    try:
        table = read_table(body)
    except ProblemError:
        return
    assert len(table.rows) == len(table.lines) == len(table.texts) > 0
