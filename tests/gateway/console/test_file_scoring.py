"""A CSV file on the view Try: it comes back with label, score and version, or each of its faults is told."""

import csv
import io

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batch_splitting import TextsRefusedError
from gateway.console.file_scoring import MOST_ROWS, read_rows
from gateway.problems import ProblemError
from gateway.request_body import MAX_BODY_BYTES
from tests.gateway.console.conftest import INJECTED, PART, Page
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.test_feedback import Gateway

SCORE = "/console/score"


def send(console: Gateway, body: str | bytes, media_type: str = "text/csv") -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    return console.http.post(SCORE, content=content, headers={**PART, "Content-Type": media_type})


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
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert header == ["id", "text", "label", "score", "version"]
    assert [row[:2] for row in rows] == sent
    assert [row[2] for row in rows] == ["Positive", "Negative", "Positive"]
    assert all(0.5 <= float(row[3]) <= 1 and row[4] == "1" for row in rows)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("", "The file is empty"),
        ("text\n", "file has column names but no rows under them"),
        ("txt\ngood\n", "line 1 has no column 'text'; did you mean 'txt'?"),
        ("a,text,a\n1,good,2\n", "two columns 'a'"),
        ("text,label\ngood,x\n", "line 1, column label is there already"),
        ("text,id\ngood,1\nbad\n", "line 3 has 1 fields; the header has 2"),
        ("text\ngood\n\n  \n", "line 4 'text' is empty or only blanks"),
        (b"text\ncaf\xe9\n", "line 2 is not UTF-8"),
        ('text\n"good\nbad\n', "is no CSV"),
    ],
)
def test_faults_are_told_with_line_and_column(console: Gateway, body: str | bytes, told: str) -> None:
    assert told in refused(send(console, body))


def test_of_many_faulty_rows_the_first_are_told_and_the_others_counted(console: Gateway) -> None:
    text = refused(send(console, "id,text\n" + "1\n" * 30))
    assert "line 21 has 1 fields" in text
    assert "line 22" not in text
    assert "has 10 more such rows" in text


def test_what_was_in_the_file_is_escaped(console: Gateway) -> None:
    refused(send(console, f'"{INJECTED.replace(chr(34), chr(34) * 2)}"\ngood\n'))


def test_a_file_that_is_too_long_is_refused(console: Gateway, triton: FakeTriton) -> None:
    triton.calls.clear()
    assert f"over {MOST_ROWS:,} rows" in refused(send(console, "text\n" + "good\n" * (MOST_ROWS + 1)), 413)
    assert "too long" in refused(send(console, b"x" * (MAX_BODY_BYTES + 1)), 413)
    assert not triton.calls


@pytest.mark.parametrize(
    "header", ["," * (MAX_BODY_BYTES - 10), ",".join(map(str, range(400_000)))], ids=["same", "many"]
)
def test_a_header_of_any_number_of_columns_is_told_at_once(console: Gateway, header: str) -> None:
    text = refused(send(console, f"{header}\n"))
    assert "two columns ''" in text or "has 400,000 columns; at most 1000 are read" in text


def test_another_media_type_and_another_site_are_refused(console: Gateway) -> None:
    refused(send(console, "text\ngood\n", "application/x-www-form-urlencoded"), 415)
    headers = {"Content-Type": "text/csv", "Sec-Fetch-Site": "cross-site"}
    assert console.http.post(SCORE, content=b"text\ngood\n", headers=headers).status_code == 403


def test_where_the_model_refuses_a_text_its_line_is_told(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> object:
        raise TextsRefusedError({1: "it is too odd"})

    monkeypatch.setattr("gateway.predictor.Predictor.predict_batch", fail)
    assert "line 3 'text' is refused by the model: it is too odd" in refused(send(console, "text\ngood\nodd\n"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"text\n{text}".encode()))
def test_any_bytes_are_rows_or_a_problem(body: bytes) -> None:
    try:
        rows = read_rows(body)
    except ProblemError:
        return
    assert len(rows.fields) == len(rows.lines) == len(rows.texts) > 0
