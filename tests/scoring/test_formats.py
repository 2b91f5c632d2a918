"""Rows of every format come out in every format, in their order, with all that they had and the three columns more."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.scoring.conftest import Desk, read_rows, rows_of, write_rows

KINDS = ["csv", "csv.gz", "parquet", "jsonl", "jsonl.zst"]


@pytest.mark.parametrize("output", ["csv", "csv.zst", "parquet", "jsonl.gz"])
@pytest.mark.parametrize("given", KINDS)
def test_each_kind_into_each(desk: Desk, given: str, output: str) -> None:
    rows = rows_of(1000)
    write_rows(desk.folder / f"in.{given}", rows)
    told = desk.score(f"in.{given}", "--out", f"out.{output}")
    assert "Scored 1,000 rows in" in told
    found = read_rows(desk.folder / f"out.{output}")
    if given.startswith("csv"):
        found = [row | {"id": int(row["id"])} for row in found]  # columns of CSV are strings, also elsewhere
    assert found == desk.scored(rows)
    assert not (desk.folder / f"out.{output}.rejected.jsonl").exists()


def test_json_lines_keep_each_line_as_it_is(desk: Desk) -> None:
    line = b'{"n": 123456789012345678901234567890, "x": 1.10, "text": "good", "n2": {"a": [1, null]} }'
    (desk.folder / "in.jsonl").write_bytes(line + b"\n\n" + line)
    desk.score("in.jsonl", "--out", "out.jsonl")
    for found in (desk.folder / "out.jsonl").read_bytes().splitlines():
        assert found.startswith(line[:-1].rstrip() + b',"label":"')
        assert list(json.loads(found)) == ["n", "x", "text", "n2", "label", "score", "version"]


def test_parquet_keeps_types_and_nulls(desk: Desk) -> None:
    table = pa.table(
        {
            "text": pa.array(["good", "terrible", "good"]).dictionary_encode(),
            "when": pa.array([1, None, 3], pa.timestamp("us", "Europe/Zurich")),
            "tags": pa.array([["a"], None, []], pa.list_(pa.string())),
            "raw": pa.array([b"\xff", None, b""], pa.binary()),
        }
    )
    pq.write_table(table, desk.folder / "in.parquet")
    desk.score("in.parquet", "--out", "out.parquet")
    found = pq.read_table(desk.folder / "out.parquet")
    assert found.drop_columns(["label", "score", "version"]).equals(table)
    assert found.schema.field("score").type == pa.float64()
    desk.score("in.parquet", "--out", "out.jsonl")
    assert json.loads((desk.folder / "out.jsonl").read_bytes().splitlines()[0])["raw"] == "/w=="
    desk.score("in.parquet", "--out", "out.csv")
    assert read_rows(desk.folder / "out.csv")[0]["tags"] == '["a"]'


def test_json_fields_that_come_and_go_are_null_where_they_are_not(desk: Desk) -> None:
    rows = [{"text": f"good {number}"} | ({"late": number} if number > 4500 else {}) for number in range(5000)]
    write_rows(desk.folder / "in.jsonl", rows)
    desk.score("in.jsonl", "--out", "out.parquet")
    found = read_rows(desk.folder / "out.parquet")
    assert [row["late"] for row in found] == [row.get("late") for row in rows]


def test_json_fields_that_are_no_column_are_told_and_lines_keep_them(desk: Desk) -> None:
    write_rows(desk.folder / "in.jsonl", [{"text": "good", "x": 1}, {"text": "good", "x": "one"}])
    desk.score("in.jsonl", "--out", "out.jsonl")
    assert [row["x"] for row in read_rows(desk.folder / "out.jsonl")] == [1, "one"]
    told = desk.refused("in.jsonl", "--out", "out.parquet")
    assert "the values of 'x' up to row 2 cannot form one column" in told


def test_json_fields_that_change_later_are_told(desk: Desk) -> None:
    write_rows(desk.folder / "in.jsonl", [{"text": "good", "x": 1 if row < 512 else "one"} for row in range(700)])
    told = desk.refused("in.jsonl", "--out", "out.csv")
    assert "in.jsonl: the values of a field up to row 700 cannot form one column" in told
    assert "Field x has incompatible types" in told


def test_the_text_column_is_found_by_its_usual_names_and_files_may_differ(desk: Desk) -> None:
    (desk.folder / "a.csv").write_bytes("Id;Review \n1;schöne Lampe\n2;a “bad” day\n".encode("cp1252"))
    (desk.folder / "b.tsv").write_bytes("TEXT\tid\r\nit's good\t3\r\n".encode("utf-16"))
    told = desk.score("a.csv", "b.tsv", "--out", "scored")
    assert "a.csv: read as windows-1252, the encoding that was detected." in told
    assert "a.csv: the delimiter is a semicolon." in told
    assert "a.csv: column 'Review ' is used as the text." in told
    assert [row["Review "] for row in read_rows(desk.folder / "scored" / "a.csv")] == ["schöne Lampe", "a “bad” day"]
    assert (desk.folder / "scored" / "b.tsv").read_text().startswith("TEXT\tid\tlabel\tscore\tversion\nit's good\t3\t")


def test_columns_of_a_file_without_a_header_have_positions(desk: Desk) -> None:
    (desk.folder / "in.csv").write_text("7,good\n8,terrible\n")
    assert "no column has a usual name for the text" in desk.refused("in.csv", "--out", "out.csv")
    desk.score("in.csv", "--out", "out.csv", "--text-column", "2")
    found = read_rows(desk.folder / "out.csv")
    assert [row["2"] for row in found] == ["good", "terrible"]
    assert list(found[0]) == ["1", "2", "label", "score", "version"]


def test_several_inputs_into_one_file_in_their_order(desk: Desk) -> None:
    (desk.folder / "reviews").mkdir()
    parts = [rows_of(300, first) for first in (0, 300, 600)]
    write_rows(desk.folder / "z.jsonl", parts[0])
    write_rows(desk.folder / "reviews" / "a.parquet", parts[1])
    write_rows(desk.folder / "reviews" / "b.jsonl.gz", parts[2])
    write_rows(desk.folder / "reviews" / ".hidden.csv", parts[0])
    (desk.folder / "reviews" / "README.md").write_text("no rows")
    desk.score("z.jsonl", "reviews", "reviews/*.parquet", "--out", "all.parquet")
    assert read_rows(desk.folder / "all.parquet") == desk.scored([row for part in parts for row in part])


def test_a_folder_into_a_folder(desk: Desk) -> None:
    (desk.folder / "reviews" / "2024").mkdir(parents=True)
    for name, first in (("a.csv", 0), ("2024/a.csv", 100), ("2024/b.parquet", 200)):
        write_rows(desk.folder / "reviews" / name, rows_of(100, first))
    desk.score("reviews", "--out", "scored")
    for name, first in (("a.csv", 0), ("2024/a.csv", 100), ("2024/b.parquet", 200)):
        assert read_rows(desk.folder / "scored" / name) == desk.scored(rows_of(100, first))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_no_rows_are_no_rows(desk: Desk, kind: str) -> None:
    path = desk.folder / f"in.{kind}"
    if kind == "csv":
        path.write_text("text,id\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("")
    desk.score(path.name, "--out", f"out.{kind}")
    assert read_rows(desk.folder / f"out.{kind}") == []
    if kind == "csv":
        assert (desk.folder / "out.csv").read_text() == "text,id,label,score,version\n"


def test_the_version_and_the_names_can_be_chosen(desk: Desk) -> None:
    write_rows(desk.folder / "in.csv", [{"label": "mine", "review": "good"}])
    command = ["in.csv", "--out", "out.csv", "--text-column", "review", "--version", "2"]
    assert "already has a column 'label'. Choose other names" in desk.refused(*command)
    desk.score(*command, "--prefix", "predicted_")
    (found,) = read_rows(desk.folder / "out.csv")
    assert list(found) == ["label", "review", "predicted_label", "predicted_score", "predicted_version"]
    assert found["label"] == "mine"
    assert found["predicted_version"] == "2"


def bad_csv(folder: Path) -> None:
    (folder / "in.csv").write_bytes(
        b'\xef\xbb\xbfid,text\n0,good\n1,\n2, \n3,good,extra\n4,caf\xe9\n5,"a"b\n\n6,terrible\n7,"never closed\n8,x\n'
    )


def bad_jsonl(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(
        b'\xef\xbb\xbf{"id": 0, "text": "good"}\n{"id": 1, "text": null}\n{"id": 2}\nno json\n[]\n'
        b'{"id": 5, "text": 3}\n{"id": 6, "text": "caf\xe9"}\n'
        b'{"id": 7, "text": "x", "label": "mine"}\n{"id": 8, "text": "terrible"}\n'
    )


def bad_parquet(folder: Path) -> None:
    text = pa.array([b"good", None, b"", b"caf\xe9", b"terrible"], pa.binary())
    strings = pa.StringArray.from_buffers(5, *text.buffers()[1:], text.buffers()[0])
    pq.write_table(pa.table({"id": range(5), "text": strings}), folder / "in.parquet")


@pytest.mark.parametrize(
    ("write", "kept", "rejected"),
    [
        (
            bad_csv,
            [0, 6, 8],
            {
                2: "'text' is empty or only blanks",
                3: "'text' is empty or only blanks",
                4: "wrong number of fields: 3 instead of 2",
                5: "undecodable: byte 0xe9 at position 5 is not utf-8",
                6: "broken quoting: text after a closing double quote",
                8: "broken quoting: an opening double quote is never closed",
            },
        ),
        (
            bad_jsonl,
            [0, 8],
            {
                2: "'text' is missing",
                3: "'text' is missing",
                4: "not JSON: ",
                5: "not an object: list",
                6: "'text' is int",
                7: "undecodable: byte 0xe9 at position 22 is not utf-8",
                8: "already has a column 'label'",
            },
        ),
        (
            bad_parquet,
            [0, 4],
            {
                2: "'text' is missing",
                3: "'text' is empty or only blanks",
                4: "undecodable: byte 0xe9 at position 3 is not utf-8",
            },
        ),
    ],
)
def test_bad_rows_go_to_a_side_file(desk: Desk, write: object, kept: list[int], rejected: dict[int, str]) -> None:
    assert callable(write)
    write(desk.folder)
    (path,) = desk.folder.glob("in.*")
    told = desk.score(path.name, "--out", f"out{path.suffix}")
    assert f"Scored {len(kept)} of {len(kept) + len(rejected)} rows in" in told
    assert f"Not scored: {len(rejected)}. {desk.folder / 'out'}{path.suffix}.rejected.jsonl" in told
    assert [int(row["id"]) for row in read_rows(desk.folder / f"out{path.suffix}")] == kept
    lines = (desk.folder / f"out{path.suffix}.rejected.jsonl").read_text().splitlines()
    found = {row["row"]: row for row in map(json.loads, lines)}
    assert found.keys() == rejected.keys()
    for row, reason in rejected.items():
        assert found[row]["file"] == str(path)
        assert found[row]["reason"].startswith(reason), found[row]
