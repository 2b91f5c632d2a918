"""The command `label`: a key for each label in the terminal, or a file that is filled in and imported."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

import app
from common.settings import Settings
from storage.database import Database
from storage.tables import Feedback
from tests.lifecycle.conftest import Served as Models
from tests.lifecycle.conftest import publish
from tests.pages import blocks
from tests.sampled_texts import asked, unlike

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def database(tmp_path: Path, bert_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENTIMENT_STATE_DIR", str(tmp_path / "state"))
    models = Models(tmp_path, 0, {})
    publish(models, bert_bundle, 1)
    models.repository.deploy(1)
    monkeypatch.setenv("SENTIMENT_MODEL_REPOSITORY", str(models.directory / "triton_repo"))
    return Database(Settings().database)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    umask = os.umask(0o022)
    try:
        status = app.main([*arguments])
    finally:
        os.umask(umask)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def labels(database: Database) -> list[tuple[str, str]]:
    with database.reading() as session:
        return [(row.label, row.source) for row in session.query(Feedback).order_by(Feedback.id)]


def test_it_asks_until_the_labels_decide_and_never_shows_a_prediction(
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(database, unlike(300, "\x1b[2J"), positive=0.987)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\ns\n7\n" + "1\n" * 300))
    status, told, _ = run(capsys, "label")
    assert status == 0
    assert "[1 Negative, 2 Positive, s skip, q quit]" in told
    assert "Press one of 1, 2, s, q" in told
    assert told.rstrip().endswith("; decided: it is under 80 %.")
    assert "0.98" not in told
    assert "\x1b" not in told, "texts are no commands for the terminal"
    assert {*labels(database)} == {("Negative", "console:command")}
    assert len(labels(database)) < 10
    asks_no_more = run(capsys, "label")[1]
    assert "[1 Negative" not in asks_no_more
    assert "No text is waiting for a label." in asks_no_more
    monkeypatch.setattr(sys, "stdin", io.StringIO("q\n"))
    assert "no label yet" not in run(capsys, "label", "--new")[1].splitlines()[-1]
    assert json.loads(run(capsys, "label", "--json")[1])["standing"]["labels"] == 0


def test_a_terminal_needs_no_enter_and_ctrl_d_ends_it(database: Database) -> None:
    asked(database, unlike(300))
    outer, inner = pty.openpty()
    ended = subprocess.Popen([sys.executable, str(PROJECT / "app.py"), "label"], stdin=inner, stdout=subprocess.PIPE)
    os.close(inner)
    assert ended.stdout is not None
    told = ""
    for keys in (b"2", b"\x04"):
        # A key that comes before the question is no answer to it.
        prompts = told.count("quit] ")
        while told.count("quit] ") == prompts:
            read = os.read(ended.stdout.fileno(), 4096).decode()
            assert read, told
            told += read
        time.sleep(0.5)  # the terminal reads single keys after the question
        os.write(outer, keys)
    told += ended.communicate(timeout=120)[0].decode()
    os.close(outer)
    assert ended.returncode == 0
    assert "after 1 label;" in told
    assert labels(database) == [("Positive", "console:command")]


def test_it_prints_json_without_predictions(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    status, told, _ = run(capsys, "label")
    assert (status, "too few live texts" in told) == (0, True)
    asked(database, unlike(300))
    found = json.loads(run(capsys, "label", "--json", "--limit", "3")[1])
    assert found["standing"]["texts"] == 300
    assert [item.keys() for item in found["texts"]] == [{"id", "text"}] * 3
    status, _, error = run(capsys, "label", "--json", "--limit", "301")
    assert (status, "1 to 300" in error) == (1, True)


def test_its_file_is_filled_in_and_imported(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    asked(database, unlike(300, '=cmd("x"), said she,\nand'))
    (command,) = blocks("docs/quality.md")
    assert run(capsys, *command.removeprefix("python app.py ").split())[0] == 0
    with Path("to_label.csv").open(newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "label"]
    assert Path("to_label.csv").stat().st_mode & 0o777 == 0o644, "the file is the user's"
    assert len(rows) == 100
    assert all(text.startswith(" =") for text, _ in rows), "no spreadsheet takes them for formulas"
    assert run(capsys, "label", "--out", "to_label.csv")[0] == 1, "labels that are there are not written over"
    with Path("to_label.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *[(text, "Negative") for text, _ in rows]])
    status, told, _ = run(capsys, "feedback", "to_label.csv")
    assert status == 0
    assert "Accuracy on live texts: 0 % (0 to " in told
    assert "decided: it is under 80 %." in told


def test_a_source_that_is_not_trusted_cannot_label_in_vain(
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(database, unlike(300))
    monkeypatch.setenv("SENTIMENT_TRUSTED_SOURCES", "admin")
    status, _, error = run(capsys, "label")
    assert (status, "Add it to SENTIMENT_TRUSTED_SOURCES" in error) == (1, True)
