"""What `open_labelled` accepts, what it makes of values and rows, and what it says of files that it cannot read."""

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tables.errors import TableError
from tables.labelled import ColumnChoice, LabelledRow, open_labelled


def read(path: Path, content: bytes | str, choice: ColumnChoice | None = None) -> list[LabelledRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with open_labelled(path, choice or ColumnChoice()) as file:
        return list(file.rows())


def pairs(rows: list[LabelledRow]) -> list[tuple[str, str]]:
    assert [row.fault for row in rows if row.fault] == []
    return [(row.text, row.label) for row in rows]


def error(path: Path, choice: ColumnChoice | None = None) -> str:
    with pytest.raises(TableError) as raised, open_labelled(path, choice or ColumnChoice()) as file:
        list(file.rows())
    return str(raised.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text, label\n"a, b", x\nc, "y"\n', [("a, b", "x"), ("c", "y")]),  # blanks before quotes
        ('"text" ,"label" \n"a" , "x" \n', [("a", "x")]),  # and after them
        ("text,label\na,x,,\n\n , \n,,,\nb,y\n", [("a", "x"), ("b", "y")]),  # empty fields and lines
        ("text,label,,\na,x\nb,y,\n", [("a", "x"), ("b", "y")]),
        ("\n\ntext,label\na,x\n", [("a", "x")]),
        ("text,label\na\rb,x\nc,y\r\n", [("a\rb", "x"), ("c", "y")]),  # what older scoring wrote
        ('text,label\r"a\nb",x\rc,y', [("a\nb", "x"), ("c", "y")]),  # carriage returns as line ends
        ("label|Review_Text|n\nx|a, b; c|1\n", [("a, b; c", "x")]),
        ("reviews;rating\nwell, well;5\n", [("well, well", "5")]),
        ('text\tlabel\n5" screen\tx\n', [('5" screen', "x")]),
        ("tweet,sentiment,stars\na,x,1\n", [("a", "x")]),  # sentiments rather than ratings
    ],
)
def test_what_people_write(tmp_path: Path, content: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(read(tmp_path / "a.csv", content)) == expected


def test_a_line_that_is_not_json_is_kept(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", '{"text": "a", "label": "x"}\n {"text": "b", \n')
    assert [(row.text, row.fault.partition(":")[0]) for row in rows] == [("a", ""), ('{"text": "b",', "not JSON")]


def test_numbers_of_rows_and_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", 'text,label\n"a\nb",x\n\n"c\nd",y,z\ne,z\n"f')
    assert [(row.row, row.line, row.text, row.fault.partition(":")[0]) for row in rows] == [
        (2, 2, "a\nb", ""),
        (3, 5, '"c', "wrong number of fields"),
        (4, 6, 'd",y,z', "wrong number of fields"),
        (5, 7, "e", ""),
        (6, 8, '"f', "broken quoting"),
    ]


def test_values_of_json_and_parquet(tmp_path: Path) -> None:
    lines = (
        '{"text": " a\\u0000 ", "label": 1}\n{"text": "b", "label": 2.0}\n{"text": 3, "label": true}\n{"text": null}\n'
    )
    expected = [("a", "1"), ("b", "2"), ("3", "True"), ("", "")]
    assert pairs(read(tmp_path / "a.jsonl", lines)) == expected
    table = pa.table(
        {"Text": pa.array(["a\0", "b", None]).dictionary_encode(), "stars": pa.array([1.0, 2.5, None], pa.float64())}
    )
    output = io.BytesIO()
    pq.write_table(table, output)
    assert pairs(read(tmp_path / "a.parquet", output.getvalue())) == [("a", "1"), ("b", "2.5"), ("", "")]


def test_formats_by_their_first_bytes(tmp_path: Path) -> None:
    csv = b"text,label\na,x\n"
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(csv)
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), parquet)
    json = b'\xef\xbb\xbf\n {"text": "a", "label": "x"}\n'
    for name, content in {
        "a": csv,
        "b.csv": gzip.compress(csv),
        "c.txt": bytes(sink.getvalue()),
        "d.csv.zst": bytes(sink.getvalue()),
        "e.data": parquet.getvalue(),
        "f.json": json,
        "g": gzip.compress(json),
        "h.csv.gz": csv,
    }.items():
        if name == "h.csv.gz":
            (tmp_path / name).write_bytes(content)
            assert "FILE cannot be read to its end" in error(tmp_path / name)
        else:
            assert pairs(read(tmp_path / name, content)) == [("a", "x")], name


@pytest.mark.parametrize(
    ("name", "content", "choice", "told"),
    [
        ("a.csv", "", None, "FILE is empty. Its first row must name the columns."),
        ("a.csv", "\ufeff \n", None, "FILE is empty"),
        ("a.jsonl", "\n", None, "FILE has no row that is a JSON object"),
        ("a.csv", b"PK\x03\x04...", None, "FILE is an Excel workbook or a zip archive. Save it as CSV."),
        ("a.xls", b"\xd0\xcf\x11\xe0...", None, "FILE is an old Excel workbook. Save it as CSV."),
        *(
            (name, '[\n {"text": "a"}]', None, "FILE is one JSON array. Write JSON Lines: one object per line.")
            for name in ("a.json", "a.jsonl", "a.csv")
        ),
        ("a.csv", '{"text": "a"}\n', None, "FILE contains JSON and not CSV. If it has one object per line, name it"),
        ("a.parquet", "text,label\n", None, "FILE cannot be read as Parquet"),
        ("a.csv", '"text,label\na,x\n', None, "FILE: the header cannot be read: broken quoting"),
        ("a.csv", "x" * 300_000, None, "FILE has no line end in its first 262,144 bytes"),
        (
            "a.csv",
            "text,label,label\n",
            None,
            "FILE: 'label', 'label' could all be the label. Set SENTIMENT_LABEL_COLUMN",
        ),
        ("a.csv", "text,grade\n", None, "no column has a usual name for the label"),
        (
            "a.csv",
            "Body,y\n",
            ColumnChoice("bodi", "y"),
            "has no column 'bodi' (SENTIMENT_TEXT_COLUMN); did you mean 'Body'?",
        ),
        ("a.csv", "a,b\n", ColumnChoice("1", "3"), "SENTIMENT_LABEL_COLUMN=3, but there are only 2 columns: '1', '2'"),
    ],
)
def test_errors(tmp_path: Path, name: str, content: bytes | str, choice: ColumnChoice | None, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert told in error(path, choice)


def test_no_file_at_all(tmp_path: Path) -> None:
    assert error(tmp_path / "no.csv") == "FILE: no such file. Set SENTIMENT_TRAIN_DATA and SENTIMENT_VAL_DATA."
    assert error(tmp_path) == "FILE is a directory. Name a file."


@pytest.mark.parametrize(
    ("content", "choice", "expected"),
    [
        ("{a},1\n[{b}],2\n", ColumnChoice("1", "2"), [("{a}", "1"), ("[{b}]", "2")]),  # is not JSON
        ("a,1\nb,2\n", ColumnChoice("1", "2"), [("a", "1"), ("b", "2")]),  # a name of a column would be "1" too
        ("sentiment,review\nx,a\n", ColumnChoice("2"), [("a", "x")]),  # a position in a file with a header
        ("sentiment,review\nx,a\n", ColumnChoice("2", "1"), [("a", "x")]),
        ("Note 1;Grade;x\na;1;\n", ColumnChoice("note 1", "GRADE"), [("a", "1")]),
    ],
)
def test_chosen_columns(tmp_path: Path, content: str, choice: ColumnChoice, expected: list[tuple[str, str]]) -> None:
    assert pairs(read(tmp_path / "a.csv", content, choice)) == expected
