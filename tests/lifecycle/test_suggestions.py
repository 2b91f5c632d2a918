"""What to label next: uncertain, typical of the drift, no two alike, and only what would be learnt from."""

import csv
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import app
from errors import PipelineError
from lifecycle.suggesting import suggest_apart
from lifecycle.suggestions import Suggestion, choose, suggest, uncertainty_of, weigh
from settings import Settings
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


def test_the_less_sure_the_model_is_the_sooner_a_text_is_drawn(settings: Settings, database: Database) -> None:
    texts = unlike(300)
    asked(database, texts[:200], positive=0.98)
    asked(database, texts[200:], positive=0.5)
    suggested = [item.text for item in found(settings, database, 60)]
    # 100 texts of the entropy 1, and 200 of 0.14: of those that are drawn first, nearly four in five.
    unsure = sum(text in texts[200:] for text in suggested)
    assert 40 <= unsure < 60, "drawn, and not taken from the top"


def test_uncertainty_is_of_all_labels_and_between_0_and_1() -> None:
    rows = [[0.5, 0.5], [1.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0], [0.9, 0.1]]
    assert uncertainty_of(rows) == pytest.approx([1, 0, 1, 0.6309, 0.4690], abs=1e-4)


def test_what_is_typical_of_the_drift_is_drawn_sooner(settings: Settings, database: Database) -> None:
    old, new = unlike(300, "the critics say:"), unlike(100, "omg lol haha")
    write_data(Path(), old[100:], unlike(20, "the critics say:", held_out=True))
    asked(database, old[:100] + new, positive=0.6)
    items = found(settings, database)
    assert sum(item.text in new for item in items[:50]) >= 35
    likeness = {item.text: item.drift for item in items}
    assert min(likeness[text] or 0 for text in new) > max(likeness[text] or 1 for text in old[:100])


def test_what_is_drawn_is_the_same_each_time_and_as_often_as_its_weight() -> None:
    texts = unlike(2_000)
    weights = np.where(np.arange(len(texts)) < 1_000, 3.0, 1.0)
    drawn = choose(texts, weigh(weights, None), 200)
    assert drawn == choose(texts, weigh(weights, np.full(len(texts), 0.5)), 200), "what is equal of all changes nothing"
    # Three of four, but for those that are gone already; four standard deviations are 0.12.
    assert np.mean([place < 1_000 for place in drawn]) == pytest.approx(0.74, abs=0.12)


def test_no_two_are_near_duplicates(settings: Settings, database: Database) -> None:
    same = [f"Dear Sir, order number {number} came late and in a broken box" for number in range(1_000, 1_200)]
    others = unlike(30)
    asked(database, same, positive=0.5)
    asked(database, others, positive=0.6)
    suggested = [item.text for item in found(settings, database)]
    assert sum(text in same for text in suggested) == 1
    assert set(others) < set(suggested)


def test_the_first_ones_are_the_list_of_fewer() -> None:
    texts = unlike(100)
    weights = np.random.default_rng(0).random(len(texts))
    many = choose(texts, weights, 40)
    assert choose(texts, weights, 10) == many[:10]
    assert len(set(many)) == len(many) == 40


def test_what_is_held_out_told_or_in_the_files_is_not_suggested(settings: Settings, database: Database) -> None:
    texts, held_out = unlike(60), unlike(30, held_out=True)
    asked(database, texts + held_out, positive=0.5)
    add_feedback(database, [LabelledText(texts[0].upper(), "Positive")], "test")
    write_data(Path(), texts[1:21], texts[21:41])
    told = suggest(settings, database)
    suggested = {item.text for item in told.texts}
    assert suggested == set(texts[41:])
    assert told.considered == 19


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


def test_texts_that_the_version_that_serves_was_asked_are_meant(
    settings: Settings, database: Database, bert_bundle: Path, tmp_path: Path
) -> None:
    models = Models(tmp_path, 0, {})
    publish(models, bert_bundle, 2)
    models.repository.deploy(2)
    old, new = unlike(60, "old"), unlike(60, "new")
    asked(database, old, version=1)
    assert {item.version for item in found(settings, database)} == {1}
    asked(database, new, version=2)
    assert {item.version for item in found(settings, database)} == {2}


def test_a_process_of_its_own_finds_the_same(settings: Settings, database: Database) -> None:
    asked(database, unlike(30))
    assert suggest_apart(settings, threading.Event()) == suggest(settings, database).figures()


def test_where_it_cannot_or_need_not_go_on_it_says_so(settings: Settings, tmp_path: Path) -> None:
    ended = threading.Event()
    ended.set()
    with pytest.raises(PipelineError, match="could not be found out"):
        suggest_apart(settings, ended)
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match="could not be found out"):
        suggest_apart(Settings(state_dir=tmp_path / "file"), threading.Event())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = app.main([*arguments])
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
    assert table.splitlines()[0].split() == ["uncertain", "new", "the", "model", "says", "text"]
    assert "Of 30 sampled texts" in table
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
