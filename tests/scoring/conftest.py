"""A model repository with small random versions, and files of rows to score with them."""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.backend.engine import Engine
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from tests.commands import run_command
from tests.conftest import REFERENCE, SENTENCES
from tests.e2e.conftest import PROJECT

Row = dict[str, Any]


@dataclass
class Desk:
    """A folder in which `python app.py score` runs."""

    folder: Path
    engine: Engine
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(PROJECT / "app.py"), "score", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(["score", *arguments], self.folder, self.environment)

    def score(self, *arguments: str) -> str:
        """Run to the end; gives what was told."""
        ended = self.run(*arguments)
        assert ended.returncode == 0, ended.stderr
        assert not list(self.folder.glob("*.partial"))
        return ended.stderr

    def refused(self, *arguments: str) -> str:
        ended = self.run(*arguments)
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr

    def scored(self, rows: Sequence[Row], version: int = 1) -> list[Row]:
        """The rows with what a whole and right job adds to them."""
        values = self.engine.classify([row["text"] for row in rows]).values
        return [
            row
            | {
                "label": self.engine.bundle.labels[int(row_values.argmax())],
                "score": pytest.approx(float(row_values.max()), abs=2e-4),
                "version": version,
            }
            for row, row_values in zip(rows, values, strict=True)
        ]


def make_desk(folder: Path, bundle: Path, versions: int = 2) -> Desk:
    repository = ModelRepository(folder / "triton_repo")
    for version in range(1, versions + 1):
        staging = repository.staging_directory(version)
        for file in bundle.iterdir():
            (staging / file.name).write_bytes(file.read_bytes())
        replace(Bundle.load(staging), version=version).save(staging)
        repository.publish(staging, version)
    repository.deploy(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
    return Desk(folder, Engine(bundle, REFERENCE, 1), environment | {"SENTIMENT_HOME": "."})


@pytest.fixture
def desk(tmp_path: Path, bert_bundle: Path) -> Desk:
    return make_desk(tmp_path, bert_bundle)


def rows_of(count: int, first: int = 0) -> list[Row]:
    return [
        {"id": number, "text": f"{SENTENCES[number % len(SENTENCES)]} {number}", "note": f'a "{number}",\nb'}
        for number in range(first, first + count)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=700)
        return
    if kind.startswith("csv"):
        with path.open("w", newline="", encoding="utf-8") as output:
            writer = csv.DictWriter(output, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        content = path.read_bytes()
    else:
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if kind.endswith(".gz"):
        content = gzip.compress(content)
    elif kind.endswith(".zst"):
        content = _zstd(content)
    path.write_bytes(content)


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; CSV holds only strings, of which the numbers of `rows_of` and of scores are read."""
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        rows: list[Row] = pq.read_table(path).to_pylist()
        return rows
    with pa.input_stream(str(path), compression="detect") as stream:
        text = stream.read().decode()
    if kind.startswith("jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    numbers = {"id": int, "score": float, "version": int}
    return [
        {name: numbers.get(name, str)(value) for name, value in row.items()}
        for row in csv.DictReader(text.splitlines(keepends=True))
    ]
