"""Texts to label next: drawn at random, without a label, and none that is held out."""

import csv
import json
import os
import time
from pathlib import Path

import pytest

import app
from common.settings import Settings
from lifecycle.monitoring.suggestions import Suggestion, suggest
from storage.database import Database
from storage.feedback import LabelledText, add_feedback, is_held_out, text_hash
from storage.sampled_predictions import MOST_CHARACTERS, AnsweredText, add_sample
from tests.lifecycle.conftest import Served as Models
from tests.lifecycle.conftest import publish
from tests.pages import blocks
from tests.sampled_texts import asked, unlike


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def database(settings: Settings) -> Database:
    return Database(settings.database)


def write_data(directory: Path, train: list[str], val: list[str]) -> None:
    for name, texts in (("train", train), ("val", val)):
        with (directory / f"{name}_sentiment_data.csv").open("w", newline="") as file:
            rows = [(text, ("Positive", "Negative")[place % 2]) for place, text in enumerate(texts)]
            csv.writer(file).writerows([("text", "label"), *rows])


def found(settings: Settings, database: Database, limit: int = 300) -> list[Suggestion]:
    return suggest(settings, database, limit).texts


def test_the_draw_is_the_same_each_time_and_independent_of_the_answer(settings: Settings, database: Database) -> None:
    texts = unlike(300)
    asked(database, texts[:150], positive=0.98)
    asked(database, texts[150:], positive=0.5)
    drawn = [item.text for item in found(settings, database, 100)]
    assert len(set(drawn)) == 100
    assert [item.text for item in found(settings, database, 10)] == drawn[:10]
    # Half of them; four standard deviations of such a draw are 16.
    assert 34 <= sum(text in texts[150:] for text in drawn) <= 66


def test_what_is_held_out_told_or_in_the_files_is_not_suggested(settings: Settings, database: Database) -> None:
    texts, held_out = unlike(60), unlike(30, held_out=True)
    asked(database, texts + held_out, positive=0.5)
    add_feedback(database, [LabelledText(texts[0].upper(), "Positive")], "test")
    write_data(Path(), texts[1:21], texts[21:41])
    told = suggest(settings, database)
    suggested = {item.text for item in told.texts}
    assert suggested == set(texts[41:])
    assert told.considered == 19
    write_data(Path(), texts[1:21], texts[21:51])
    assert {item.text for item in found(settings, database)} == set(texts[51:]), "changed files are read again"


def test_a_text_that_cannot_be_told_or_is_not_whole_is_not_suggested(settings: Settings, database: Database) -> None:
    number = 0
    while is_held_out(text_hash(long := f"{number} " + "word " * MOST_CHARACTERS)):
        number += 1
    asked(database, [long, *[f"\0 {text}" for text in unlike(10)]])
    assert found(settings, database) == []
    add_sample(
        database, [AnsweredText("whole", "Positive", b"\0\0\0?\0\0\0?", 1, False, time.monotonic())], keeps_texts=False
    )
    assert suggest(settings, database).figures() == {"considered": 0, "suggestions": []}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    umask = os.umask(0o022)
    try:
        status = app.main([*arguments])
    finally:
        os.umask(umask)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_prints_a_table_or_json(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTIMENT_STATE_DIR", str(settings.state_dir))
    assert run(capsys, "suggest")[1].startswith("Nothing yet.")
    asked(database, unlike(30))
    status, table, _ = run(capsys, "suggest", "--limit", "3")
    assert status == 0
    assert table.splitlines()[0].split() == ["#", "text"]
    assert "Drawn from 30 sampled texts" in table
    assert json.loads(run(capsys, "suggest", "--json")[1]) == suggest(settings, database, 30).figures()
    status, _, error = run(capsys, "suggest", "--limit", "301")
    assert (status, "1 to 300" in error) == (1, True)


def test_its_file_is_filled_in_and_imported(
    settings: Settings,
    database: Database,
    bert_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = Models(tmp_path, 0, {})
    publish(models, bert_bundle, 1)
    models.repository.deploy(1)
    monkeypatch.setenv("SENTIMENT_STATE_DIR", str(settings.state_dir))
    texts = unlike(30, '=cmd("x"), said she,\nand')
    asked(database, texts)
    (command,) = blocks("docs/quality.md")
    assert run(capsys, *command.removeprefix("python app.py ").split())[0] == 0
    Path("to_label.csv").rename("todo.csv")
    with Path("todo.csv").open(newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "label"]
    assert all(text.startswith(" =") for text, _ in rows), "no spreadsheet takes them for formulas"
    assert run(capsys, "suggest", "--out", "todo.csv")[0] == 1, "labels that are there are not written over"
    with Path("todo.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *[(text, "Positive") for text, _ in rows]])
    assert run(capsys, "feedback", "todo.csv")[0] == 0
    assert found(settings, database) == []
