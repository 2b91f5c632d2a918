"""Importing feedback: any sensible file is read, and rows that cannot be used are left out, counted and listed."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import app
from common.settings import Settings
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import events
from storage.database import Database
from storage.feedback import newest_rows
from tests.lifecycle.conftest import hollow_bundle
from tests.sampled_texts import asked, unlike
from trainer.rejected import FEEDBACK_LIST

CASES = Path(__file__).parents[2] / "tables" / "cases"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CASES / "expected.json").read_text())
LABELS = ("Negative", "Positive")


class Pipeline:
    """A state directory with a deployed model that knows some labels."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.settings = Settings(state_dir=directory / "state")
        self._bundle = Bundle.load(hollow_bundle(directory))
        self._capsys = capsys

    def deploy(self, labels: tuple[str, ...] = LABELS) -> None:
        repository = ModelRepository(self.directory / "triton_repo")
        staging = repository.staging_directory(1)
        for file in (self.directory / "bundle").iterdir():
            (staging / file.name).write_bytes(file.read_bytes())
        replace(self._bundle, labels=labels).save(staging)
        repository.publish(staging, 1)
        repository.deploy(1)

    def run(self, *arguments: str) -> tuple[int, str]:
        status = app.main([*arguments])
        printed = self._capsys.readouterr()
        return status, printed.out + printed.err

    def imported(self) -> list[tuple[str, str]]:
        return [(row["text"], row["label"]) for row in newest_rows(Database(self.settings.database), 1_000)]

    def rejected(self) -> list[dict[str, str]]:
        with (self.settings.state_dir / FEEDBACK_LIST).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pipeline:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENTIMENT_STATE_DIR", str(tmp_path / "state"))
    return Pipeline(tmp_path, capsys)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_of_file_is_imported_as_expected(pipeline: Pipeline, name: str) -> None:
    expected = EXPECTED[name]
    pipeline.deploy(tuple(expected.get("labels", LABELS)))
    status, told = pipeline.run("feedback", str(CASES / name))
    if "error_names" in expected:
        assert status == 1
        assert all(word in told for word in expected["error_names"]), told
        assert pipeline.imported() == []
        return
    assert status == 0, told
    assert f"{expected['kept']} rows of feedback were imported from {name}." in told
    assert len(pipeline.imported()) == expected["kept"]
    assert len(pipeline.rejected()) == expected["rejected"]


@pytest.mark.parametrize("name", [name for name in EXPECTED if "settings" in EXPECTED[name]])
def test_settings_for_columns_and_labels_hold_for_imports(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pipeline.deploy()
    for setting, value in EXPECTED[name]["settings"].items():
        monkeypatch.setenv(setting, value)
    status, told = pipeline.run("feedback", str(CASES / name))
    assert status == 0, told
    assert len(pipeline.imported()) == (41 if name == "no_header.csv" else 40)
    assert {label for _, label in pipeline.imported()} == set(LABELS)


@pytest.mark.parametrize(("text", "label"), [("body", "stars"), ("2", "1")])
def test_texts_to_label_come_back_whatever_columns_the_data_files_have(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, text: str, label: str
) -> None:
    monkeypatch.setenv("SENTIMENT_TEXT_COLUMN", text)
    monkeypatch.setenv("SENTIMENT_LABEL_COLUMN", label)
    pipeline.deploy()
    asked(Database(pipeline.settings.database), unlike(200))
    assert pipeline.run("label", "--limit", "20", "--out", "to_label.csv")[0] == 0
    lines = Path("to_label.csv").read_text(encoding="utf-8").splitlines()
    Path("to_label.csv").write_text("\n".join([lines[0], *(f"{line}Positive" for line in lines[1:])]))
    status, told = pipeline.run("feedback", "to_label.csv")
    assert status == 0, told
    assert "20 rows of feedback were imported" in told


def test_unknown_labels_are_told_with_the_nearest_and_do_not_stop_the_others(pipeline: Pipeline) -> None:
    pipeline.deploy()
    rows = [f"text {number},{'positive' if number % 2 else 'NEGATIVE '}\n" for number in range(20)]
    file = Path("more.csv")
    file.write_text("text,label\n" + "".join(rows) + 'odd,Pozitive\nodder,"mixed, ""both"""\n')
    status, told = pipeline.run("feedback", str(file))
    assert status == 0, told
    assert {label for _, label in pipeline.imported()} == set(LABELS)
    assert "rejected 2 of 22 rows (unknown label 2)" in told
    assert "'Pozitive' (1 row) is not among the model's labels; did you mean 'Positive'?\n" in told
    assert "'mixed, \"both\"' (1 row) is not among the model's labels, which are 'Negative', 'Positive'." in told
    assert [(row["row"], row["text"]) for row in pipeline.rejected()] == [("22", "odd"), ("23", "odder")]
    (event,) = events.newest(Database(pipeline.settings.database), 1)
    assert event.figures == {"rows": 20, "source": "import:more.csv", "rejected": {"unknown label": 2}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("text,label\na,Positiv\nb,Negativ\n", "did you mean 'Positive'?"),
        ("text,label\na,\n", "more.csv: no row can be imported."),
        ("text,label\n", "has a header but no rows"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused(pipeline: Pipeline, content: str, told: str) -> None:
    pipeline.deploy()
    Path("more.csv").write_text(content)
    status, found = pipeline.run("feedback", "more.csv")
    assert status == 1
    assert told in found
    assert pipeline.imported() == []


def test_a_misspelt_action_is_told_as_such(pipeline: Pipeline) -> None:
    pipeline.deploy()
    status, told = pipeline.run("feedback", "sorces")
    assert status == 1
    assert "sorces: no such file, and no action of `python app.py feedback` either; did you mean 'sources'?" in told


@pytest.mark.parametrize(
    ("delimiter", "encoding", "line_end"),
    [(";", "utf-8-sig", "\r\n"), (";", "cp1252", "\r\n"), ("\t", "utf-16", "\r\n"), (",", "cp1252", "\r")],
    ids=["Excel", "Excel in German", "Unicode text", "old Mac"],
)
def test_texts_to_label_come_back_labelled_from_a_spreadsheet(
    pipeline: Pipeline, delimiter: str, encoding: str, line_end: str
) -> None:
    pipeline.deploy()
    database = Database(pipeline.settings.database)
    asked(database, unlike(200, '=cmd("x"); "déjà vu",\nand – 5 €'))
    assert pipeline.run("label", "--limit", "30", "--out", "to_label.csv")[0] == 0
    with Path("to_label.csv").open(newline="", encoding="utf-8-sig") as file:
        header, *rows = csv.reader(file)
    assert all(text.startswith(" =") for text, _ in rows), "no spreadsheet takes them for formulas"
    filled = io.StringIO(newline="")
    writer = csv.writer(filled, delimiter=delimiter, lineterminator=line_end)
    half = [(text, "positive") for text, _ in rows[:15]] + [(text, "") for text, _ in rows[15:]]
    writer.writerows([header, *half])
    Path("labelled.csv").write_bytes(filled.getvalue().encode(encoding))
    status, told = pipeline.run("feedback", "labelled.csv")
    assert status == 0, told
    assert "15 rows of feedback were imported from labelled.csv." in told
    assert "missing label 15" in told
    assert sorted(pipeline.imported()) == sorted((text.strip(), "Positive") for text, _ in rows[:15])
    assert pipeline.run("label", "--limit", "300", "--out", "again.csv")[0] == 0
    with Path("again.csv").open(newline="", encoding="utf-8-sig") as file:
        left = [text.strip() for text, _ in list(csv.reader(file))[1:]]
    assert len(left) == 185
    assert not {text.strip() for text, _ in rows[:15]} & set(left)
