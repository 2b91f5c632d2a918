"""What scoring writes as CSV reads back as the rows that were scored."""

import csv
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.inputs import InputFile
from scoring.job import Columns, Job
from scoring.output import join
from scoring.parts import Part, Parts
from tables.blocks import Place
from tables.kinds import kind_of
from tables.labelled import ColumnChoice, open_labelled
from tests.scoring.conftest import Desk, read_rows
from tests.tables.test_csv_writing import ODD

CASES = Path(__file__).parents[1] / "tables" / "cases"
ADDED = ("label", "score", "version")


def joined(folder: Path, rows: pa.Table, given_as: str = "in.parquet", escape_formulas: bool = False) -> Path:
    """Write the rows as the only part of a job, as scoring does, and join the parts into a CSV file."""
    path = folder / given_as
    kind = kind_of(path)
    assert kind is not None
    output = folder / "out.csv"
    job = Job((InputFile(str(path), given_as, kind, 1, 0),), output, Columns("text", ADDED), 1, 4_096)
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir()
    parts = Parts(job)
    parts.write(Part(0, 0, Place(len(rows)), last=True), rows, [])
    parts.refresh()
    join(job, parts, escape_formulas)
    return output


@given(texts=st.lists(st.text(st.sampled_from("xy" + ODD + "\0"), min_size=1), min_size=1, max_size=5))
def test_any_text_reads_back_in_every_reader(tmp_path: Path, texts: list[str]) -> None:
    rows = pa.table({"text": texts, "label": ["Positive"] * len(texts), "score": [0.5] * len(texts)})
    output = joined(tmp_path, rows)
    expected = [text.replace("\0", "") for text in texts]
    with output.open(newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file, strict=True)] == expected
    frame = pytest.importorskip("pandas").read_csv(output, dtype={"text": str}, keep_default_na=False)
    assert frame["text"].tolist() == expected
    assert frame["score"].tolist() == [0.5] * len(texts)
    table = pyarrow.csv.read_csv(
        output,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types={"text": pa.string()}),
    )
    assert table["text"].to_pylist() == expected
    with open_labelled(output, ColumnChoice()) as file:
        assert [(row.text, row.label, row.fault) for row in file.rows()] == [
            (text.strip(), "Positive", "") for text in expected
        ]


def test_null_is_nothing_and_an_empty_string_is_two_quotes(tmp_path: Path) -> None:
    rows = pa.table({"text": ["good", "bad"], "note": ["", None], "number": [None, 1], "flag": [True, None]})
    assert joined(tmp_path, rows).read_text().splitlines() == ["text,note,number,flag", 'good,"",,true', "bad,,1,"]
    strings = pa.table({"text": ["good"], "note": [""]})
    assert joined(tmp_path, strings, "in.csv").read_text() == "text,note\ngood,\n", (
        "CSV has only one kind of empty cell"
    )


def test_formulas_are_escaped_on_request_in_names_texts_and_other_columns(tmp_path: Path) -> None:
    rows = pa.table({"text": ["=1+1", "good"], "@note": ["-3.5", "-x"], "number": [-1, -2]})
    expected = [["text", "'@note", "number"], ["'=1+1", "-3.5", "-1"], ["good", "'-x", "-2"]]
    output = joined(tmp_path, rows, escape_formulas=True)
    assert list(csv.reader(output.read_text().splitlines())) == expected
    output = joined(tmp_path, rows)
    assert [[cell.removeprefix("'") for cell in row] for row in expected] == list(
        csv.reader(output.read_text().splitlines())
    )


@pytest.mark.parametrize("arguments", [[], ["--escape-formulas"]])
def test_line_breaks_in_texts_come_back_as_the_same_rows(desk: Desk, arguments: list[str]) -> None:
    with open_labelled(CASES / "cr_inside.csv", ColumnChoice()) as file:
        given_rows = [(row.text, row.label) for row in file.rows()]
    assert len(given_rows) == 41
    desk.score(str(CASES / "cr_inside.csv"), "--out", "out.csv", "--prefix", "predicted_", *arguments)
    with open_labelled(desk.folder / "out.csv", ColumnChoice()) as file:
        assert [(row.text, row.label) for row in file.rows()] == given_rows
    assert [row["text"].strip() for row in read_rows(desk.folder / "out.csv")] == [text for text, _ in given_rows]
