"""What csv, pandas and pyarrow write is read back equal; a damaged line loses at most its row."""

import contextlib
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tables.errors import TableError
from tables.labelled import ColumnChoice, LabelledRow, open_labelled

Rows = list[tuple[str, str]]

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, max_size=30) | st.text(st.sampled_from("ab \"',;|\t\r\né"), max_size=12)
LABELS = st.text(CHARACTERS, max_size=8) | st.sampled_from(["Positive", "Negative", '"x"', " 1 ", ""])
TABLES = st.lists(st.tuples(TEXTS, LABELS), min_size=1, max_size=20).filter(lambda rows: any(map(any, rows)))
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


def read(content: bytes, name: str = "table.csv", choice: ColumnChoice | None = None) -> list[LabelledRow]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with open_labelled(path, choice or ColumnChoice()) as file:
            return list(file.rows())


def stripped(rows: Sequence[tuple[str, str]]) -> Rows:
    """The rows as the reader gives them; one without any visible character is a blank line."""
    found = [(text.strip(), label.strip()) for text, label in rows]
    return [row for row in found if any(row)]


def readable(rows: Sequence[LabelledRow]) -> Rows:
    assert [row.fault for row in rows if row.fault] == []
    return [(row.text, row.label) for row in rows if row.text or row.label]


def written(rows: Sequence[Sequence[str]], delimiter: str, end: str, quoting: int) -> str:
    output = io.StringIO(newline="")
    csv.writer(output, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return output.getvalue()


@given(
    TABLES,
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(ENCODINGS),
    st.booleans(),
)
@example([('a, "b"', "x")], ",", "\n", csv.QUOTE_MINIMAL, "utf-8", False)
@example([("a\r", "x"), ('"', "\r\n")], ",", "\r", csv.QUOTE_MINIMAL, "utf-8", False)
def test_the_csv_module(rows: Rows, delimiter: str, end: str, quoting: int, encoding: str, is_packed: bool) -> None:
    if quoting == csv.QUOTE_MINIMAL and end == "\r":
        rows = [(text.replace("\n", ""), label.replace("\n", "")) for text, label in rows]  # Python may not quote them
    content = written([("text", "label"), *rows], delimiter, end, quoting).encode(encoding)
    name = "table.csv.gz" if is_packed else "table.csv"
    assert readable(read(gzip.compress(content) if is_packed else content, name)) == stripped(rows)


@given(TABLES, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]), st.sampled_from(ENCODINGS))
def test_pandas(rows: Rows, delimiter: str, end: str, encoding: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    content = frame.to_csv(sep=delimiter, lineterminator=end).encode(encoding)
    assert readable(read(content)) == stripped(rows)
    lines = frame.to_json(orient="records", lines=True, force_ascii=False).encode()
    assert readable(read(lines, "table.jsonl")) == stripped(rows)


@given(TABLES, st.sampled_from(",;\t|"), st.sampled_from(["needed", "all_valid"]))
def test_pyarrow(rows: Rows, delimiter: str, quoting: str) -> None:
    table = pa.table({name: [row[index] for row in rows] for index, name in enumerate(("text", "label"))})
    output = io.BytesIO()
    pacsv.write_csv(table, output, pacsv.WriteOptions(delimiter=delimiter, quoting_style=quoting))
    assert readable(read(output.getvalue())) == stripped(rows)
    output = io.BytesIO()
    pq.write_table(table, output)
    assert readable(read(output.getvalue(), "table")) == stripped(rows)


@given(TABLES, st.booleans())
def test_json_lines(rows: Rows, is_ascii: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=is_ascii) for text, label in rows]
    assert readable(read("\n".join(lines).encode(), "table.jsonl")) == stripped(rows)


WORDS = st.lists(st.sampled_from(["good", "bad", "café", "so, so", "5 stars", 'the "best"']), min_size=1, max_size=6)
PLAIN = st.lists(st.tuples(WORDS.map(" ".join), st.sampled_from(["Positive", "Negative"])), min_size=2, max_size=30)


@settings(max_examples=300)
@given(PLAIN, st.data(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_damaged_line_loses_at_most_its_row(rows: Rows, data: st.DataObject, end: str, all_quoted: bool) -> None:
    content = written([("text", "label"), *rows], ",", end, csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
    lines = content.encode().splitlines(keepends=True)
    number = data.draw(st.integers(1, len(lines) - 1))
    line = lines[number].rstrip(b"\r\n")
    place = data.draw(st.integers(0, len(line)))
    damage = data.draw(st.sampled_from([b'"', b",", b"\xff", b'"",', b"\0"]))
    lines[number] = line[:place] + damage + line[place + data.draw(st.integers(0, 2)) :] + end.encode()
    found = read(b"".join(lines))
    others = [row for index, row in enumerate(rows, start=1) if index != number]
    at = number - 1
    kept = [(row.text, row.label) for row in found if row.row != number + 1]
    assert kept == others, (at, found)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"text,label\n", b"PAR1", b"\x1f\x8b", b"\xff\xfe", b'{"text": "'])
)
def test_any_bytes_are_rows_or_an_error(content: bytes, start: bytes) -> None:
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.csv.zst", "a"):
        with contextlib.suppress(TableError):
            read(start + content, name)
