"""`python app.py data`: what it prints for people and for programs, and its exit status."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from common.settings import DEFAULT_BASE_MODEL, PACKAGED, PACKAGED_BASE, Settings
from tests.conftest import make_encoder
from tests.e2e.conftest import PROJECT
from trainer import base_tokenizer
from trainer.base_tokenizer import PackagedEncoder, load_base_tokenizer
from trainer.data_report import DataReport, data_report
from trainer.dataset import check_data
from trainer.suspects import Suspect, SuspectList, write_suspects

ROWS = [(f"text number {i}", ("Negative", "Positive")[i % 2]) for i in range(60)]


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def data(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
    return subprocess.run(
        [sys.executable, PROJECT / "app.py", "data", *arguments],
        cwd=directory,
        env=environment | {"SENTIMENT_HOME": "."} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def report(directory: Path, rows: list[tuple[str, str]], **named: Any) -> DataReport:
    write(directory / "train.csv", rows)
    settings = Settings(train_data=directory / "train.csv", state_dir=directory / "state", **named)
    return data_report(check_data(settings), load_base_tokenizer(settings))


def test_programs_get_one_object_and_a_status(tmp_path: Path) -> None:
    write(tmp_path / "train_sentiment_data.csv", [*ROWS, ROWS[0], ("", "Positive"), ("v 1", "Positive")])
    write(tmp_path / "val_sentiment_data.csv", [(f"v {i}", ("Negative", "Positive")[i % 2]) for i in range(12)])
    ended = data(tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["train"] == {
        "file": "train_sentiment_data.csv",
        "rows": 63,
        "kept": 61,
        "repetitions": 1,
        "rejected": {"empty text": 1},
        "rejected_list": ".sentiment/rejected_rows.csv",
        "encoding": "utf-8",
        "delimiter": ",",
    }
    assert (found["val"]["rows"], found["val"]["kept"], found["val"]["rejected"]) == (12, 12, {})
    assert found["labels"] == {"Negative": 36, "Positive": 36}
    assert found["overlap"] == 1
    assert {"unknown_tokens", "truncated"} <= found.keys()
    assert (tmp_path / found["train"]["rejected_list"]).read_text().count("\n") == 2
    assert found["suspicious_labels"] is None

    suspect = Suspect("training", "text number 1", "Positive", "Negative", 0.1, 0.9)
    write_suspects(Settings(state_dir=tmp_path / ".sentiment"), [suspect])
    ended = data(tmp_path, "--json", SENTIMENT_MAX_REJECTED="0.01")
    assert ended.returncode == 1
    refused = json.loads(ended.stdout)
    assert refused.keys() == found.keys()
    assert refused["train"] == found["train"]
    assert refused["suspicious_labels"] == {"list": ".sentiment/suspicious_labels.csv", "rows": 1}
    (problem,) = refused["problems"]
    assert "1 of 63 rows cannot be used (empty text 1)" in problem
    assert problem in ended.stderr


def test_of_files_that_cannot_be_read_there_is_no_table_and_each_problem_has_its_line(tmp_path: Path) -> None:
    assert data(tmp_path, SENTIMENT_TRAIN_DATA="no.csv").stdout == ""
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    write(tmp_path / "val.csv", ROWS)
    ended = data(tmp_path, SENTIMENT_TRAIN_DATA="train.csv", SENTIMENT_VAL_DATA="val.csv")
    assert ended.returncode == 1
    assert "train.csv" not in ended.stdout
    assert ended.stdout.startswith("file")
    told = ended.stderr.splitlines()
    at = told.index("  train.csv:")
    assert [line.split()[0] for line in told[at + 1 : at + 5]] == ["no", "no", "The", "If"]


def test_people_get_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [*ROWS * 30, *((f"more {i}", "Positive") for i in range(1_000)), ("", "Positive"), ("#N/A", "Neutral")]
    found = report(Path(), [*rows, ("fine", "很好")])
    text = found.as_text()
    assert text.startswith(
        "file                         train.csv\n"
        "format                    utf-8, comma\n"
        "rows                             2,803\n"
        "  kept                  1,060   37.8 %\n"
        "  repeated              1,740   62.1 %\n"
        "  rejected                  3    0.1 %\n"
        "    class too small         1    0.0 %\n"
        "    empty text              1    0.0 %\n"
        "    spreadsheet error       1    0.0 %\n\n"
        "label          training      held out\n"
        "Positive"
    )
    assert "'很好' has 1 text in train.csv, and is left out" in text
    assert "rejected 3 of 2,803 rows" in text
    assert "suspicious" not in text
    text = replace(found, suspects=SuspectList(Path("state/list.csv"), 7)).as_text()
    assert "\nsuspicious labels 7, listed in state/list.csv by the last training\n" in text


def test_no_label_controls_the_terminal(tmp_path: Path) -> None:
    labels = ("\x1b[31mred", "很好" * 40, "$x^2$")
    text = report(tmp_path, [(f"text {i}", labels[i % 3]) for i in range(90)]).as_text()
    assert "\x1b" not in text
    assert "·[31mred" in text
    assert "$x^2$" in text
    assert "…" in text


def test_an_encoder_that_does_not_know_the_signs_is_told(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "encoder")
    named = {"base_model": str(tmp_path / "encoder")}
    known = report(
        tmp_path, [(f"This is terrible. {'good ' * (i % 7)}{i % 2}", "ab"[i % 2]) for i in range(60)], **named
    )
    assert known.warnings == []
    unknown = report(tmp_path, [(f"ꦱꦸꦒꦼꦁ {chr(0xA984 + i)}", "ab"[i % 2]) for i in range(60)], **named)
    (warning,) = unknown.warnings
    assert "of the tokens are unknown to the encoder" in warning
    assert "SENTIMENT_BASE_MODEL" in warning
    assert unknown.as_json()["unknown_tokens"] > 0.5
    assert unknown.as_json()["scripts"] == {"Javanese": 1.0}
    assert warning.split()[0] in unknown.as_text()


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "encoder")
    rows = [(f"good {'good ' * (30 if i < 20 else 2)}{i}", "ab"[i % 2]) for i in range(80)]
    found = report(tmp_path, rows, base_model=str(tmp_path / "encoder"), max_length=16)
    assert found.as_json()["truncated"] == 0.25
    (warning,) = found.warnings
    assert warning.startswith("25 % of the texts are longer than 16 tokens")


def test_a_tokenizer_that_stands_in_for_the_default_encoders_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    make_encoder("bert", tmp_path / "encoder")
    stand_in = PackagedEncoder("the stand-in", lambda: tmp_path / "encoder", lambda: True)
    monkeypatch.setattr(base_tokenizer, "PACKAGED_ENCODERS", {PACKAGED: stand_in, PACKAGED_BASE: stand_in})
    text = "is not on this machine yet; measured with the tokenizer of the stand-in"
    assert f"\nencoder           {DEFAULT_BASE_MODEL} {text}\n" in report(tmp_path, ROWS).as_text()
    assert "\nencoder           the stand-in\n" in report(tmp_path, ROWS, base_model=PACKAGED_BASE).as_text()


@pytest.mark.parametrize("content", [None, "{}"])
def test_an_encoder_that_is_not_here_is_said(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "encoder").mkdir()
        (tmp_path / "encoder" / "config.json").write_text(content)
    found = report(tmp_path, ROWS, base_model=str(tmp_path / "encoder"))
    assert found.as_json()["unknown_tokens"] is None
    assert found.as_json()["truncated"] is None
    assert "length in tokens  not known" in found.as_text()
