"""CSV that the pipeline writes reads as the same cells in Python's csv module, pandas, pyarrow, and line by line."""

import csv
import io

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tables.csv_writing import Cell, csv_header, csv_lines

ODD = "\r\n\t,;|\"'\\ \u2028\u2029\x85\x0b\x0c\x1c\x1a\ufeff\xa0\u3000=+-@aI0é🙂"
"""Characters that some reader of CSV treats in a way of its own."""
CELLS = st.text(st.sampled_from(ODD), max_size=6) | st.sampled_from(["\\N", "\\.", "NULL", "NA", "ID", "#", "007", "'"])


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """A header of different names, and rows."""
    width = draw(st.integers(1, 4))
    header = draw(st.lists(CELLS, min_size=width, max_size=width, unique=True))
    rows = draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=5))
    return [header, *rows]


def written(table: list[list[str]], delimiter: str = ",") -> bytes:
    return (csv_header(table[0], delimiter) + "".join(csv_lines(table[1:], delimiter))).encode()


def by_csv(content: bytes, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True))


def by_csv_that_skips_blanks(content: bytes, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter, skipinitialspace=True))


def by_lines(content: bytes, delimiter: str) -> list[list[str]]:
    return list(csv.reader(content.decode().splitlines(keepends=True), delimiter=delimiter, strict=True))


def by_pandas(content: bytes, delimiter: str) -> list[list[str]]:
    frame = pytest.importorskip("pandas").read_csv(
        io.BytesIO(content), header=None, dtype=str, keep_default_na=False, sep=delimiter
    )
    rows: list[list[str]] = frame.to_numpy().tolist()
    return rows


def by_pyarrow(content: bytes, delimiter: str) -> list[list[str]]:
    table = pyarrow.csv.read_csv(
        io.BytesIO(content),
        read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types={f"f{at}": pa.string() for at in range(4)}),
    )
    return [list(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize("read", [by_csv, by_csv_that_skips_blanks, by_lines, by_pandas, by_pyarrow])
@given(table=tables(), delimiter=st.sampled_from(",;|\t"))
@example(table=[["\ufefftext"], ["a\rb"], [""], [" "], ["\\N"]], delimiter=",")
@example(table=[["text", ""], ["", ""], ["a\r", "\rb"], ["\u2028", "\x85"]], delimiter=",")
def test_every_reader_reads_the_cells_that_were_written(read: object, table: list[list[str]], delimiter: str) -> None:
    assert callable(read)
    assert read(written(table, delimiter), delimiter) == table


def test_only_cells_that_need_quotes_have_them() -> None:
    row: list[Cell] = ["", None, "plain text", 'a "b"', "a\rb", " a", 3, 0.5, "nul\0"]
    assert list(csv_lines([row])) == ['"",,plain text,"a ""b""","a\rb"," a",3,0.5,"nul"\n']
    assert csv_header(["ID", "", "text"]) == '"ID",,text\n'
    assert csv_header(["id", "text"]) == "id,text\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\0="])
def test_cells_that_a_spreadsheet_would_run_are_escaped_on_request(start: str) -> None:
    text = f"{start}cmd|' /C calc'!A0"
    (line,) = csv_lines([[text, 1, None]], escape_formulas=True)
    assert by_csv(line.encode(), ",") == [["'" + text.replace("\0", ""), "1", ""]]
    (header,) = by_csv(csv_header([text], escape_formulas=True).encode(), ",")
    assert header[0].startswith("'")


@pytest.mark.parametrize("text", ["-3", "+1.5", "-1,000.50", "-.5", "+2e-3", "-4 %", "a=b", " =1", "'=1", ""])
def test_numbers_and_other_texts_are_not_escaped(text: str) -> None:
    (line,) = csv_lines([["x", text]], escape_formulas=True)
    assert by_csv(line.encode(), ",") == [["x", text]]
