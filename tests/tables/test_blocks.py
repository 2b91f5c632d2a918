"""Blocks can be read from the end of any block on, in every encoding; a damaged file is told."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tables.blocks import BLOCK_ROWS, Block, Place, Rejected
from tables.columns import TEXT, Wanted
from tables.errors import TableError
from tables.kinds import Format
from tables.opening import Table, inspect
from tables.parquet_files import parquet_blocks
from tables.text_blocks import csv_blocks, json_blocks, places

ROWS = 1_300


def lines(end: str) -> list[str]:
    """Rows of which some have several lines, some are damaged, and some are blank."""
    chance = random.Random(1)
    kinds = [
        "good {n},Größe {n}",
        '"so, {n}","a\r\n""b"" {n}"',
        '"never closed {n},x',
        "three,fields,{n}",
        '"a"b,{n}',
        ', "{n}"',
        "",
        "one",
        "a\0b,{n}",
        "“{n}”,€",
    ]
    found = [
        kind.format(n=n) + end for n in range(ROWS) for kind in chance.choices(kinds, [60, 9, 1, 1, 1, 1, 1, 1, 1, 9])
    ]
    return ["id,text" + end, *found]


def table_of(path: Path) -> Table:
    return inspect(path, str(path), [Wanted(TEXT, None, "--text-column")])


def blocks(table: Table, start: Place) -> list[Block]:
    if table.kind.format is Format.PARQUET:
        return list(parquet_blocks(table.source, table.name, "text", start))
    if table.kind.format is Format.CSV:
        return list(csv_blocks(table, start))
    return list(json_blocks(table, start, True, lambda _: None))


def rows_of(found: list[Block]) -> tuple[list[str], list[Rejected]]:
    return [text for block in found for text in block.texts], [row for block in found for row in block.rejected]


@pytest.mark.parametrize(
    ("name", "encoding", "end"),
    [
        ("a.csv", "utf-8", "\n"),
        ("a.csv", "utf-8-sig", "\r\n"),
        ("a.csv", "cp1252", "\n"),
        ("a.csv", "utf-16", "\r\n"),
        ("a.csv", "utf-8", "\r"),
        ("a.csv.gz", "utf-8", "\n"),
        ("a.jsonl", "utf-8", "\n"),
        ("a.jsonl", "utf-16", "\n"),
        ("a.parquet", "utf-8", ""),
    ],
)
def test_reading_resumes_at_the_end_of_each_block(tmp_path: Path, name: str, encoding: str, end: str) -> None:
    path = tmp_path / name
    if end:
        rows = lines(end)
        if name.endswith("jsonl"):
            rows = [json.dumps({"text": row}, ensure_ascii=False) + "\n" if row.strip() else row for row in rows]
            rows[100] = "{no json\n"
        content = "".join(rows).encode(encoding)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    else:
        pq.write_table(pa.table({"text": [f"good {n}" for n in range(ROWS)]}), path, row_group_size=300)
    table = table_of(path)
    whole = blocks(table, Place())
    assert len(whole) > 3
    assert [block.rows for block in whole[:-1]] == [BLOCK_ROWS] * (len(whole) - 1)
    for index, block in enumerate(whole):
        assert rows_of(blocks(table, block.end)) == rows_of(whole[index + 1 :])
        assert block.end.offset == 0 or table.is_seekable
    if end:
        *starts, last = places(table, BLOCK_ROWS)
        assert starts[1:] == [block.end for block in whole[:-1]]
        assert last == whole[-1].end
    fractions = [block.fraction for block in whole]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    if end:  # although the file is so small that it was read at once
        assert fractions[0] == pytest.approx(BLOCK_ROWS / sum(block.rows for block in whole), rel=0.5)


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("".join(lines("\n")).encode())[:-2_000])
    with pytest.raises(TableError, match="cannot be read to its end"):
        blocks(table_of(path), Place())


def test_a_line_without_end_needs_no_memory_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"text\ngood\n")
        for _ in range(40):
            file.write(b"x" * 2**20)
        file.write(b'\nbad\n"' + b"y" * 2**21 + b'"\nbetter\n')
    (block,) = blocks(table_of(path), Place())
    assert block.texts == ["good", "bad", "better"]
    assert [row.reason for row in block.rejected] == [
        "too long: the line has more than 16,777,216 bytes",
        "too long: a field has more than 1,048,576 characters",
    ]


def test_quotes_on_every_line_do_not_make_reading_slow(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + 'x","y\n' * 50_000 + '"a ""b\n' * 20_000)
    found = blocks(table_of(path), Place())
    assert sum(block.rows for block in found) == 70_000
