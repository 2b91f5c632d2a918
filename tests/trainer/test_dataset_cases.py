"""Every file of `tests/tables/cases`, and siblings of each kind, as training's reader takes them."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.settings import Settings
from trainer.data_report import data_report
from trainer.dataset import check_data

CASES = Path(__file__).resolve().parents[1] / "tables" / "cases"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CASES / "expected.json").read_text(encoding="utf-8"))


def report_on(directory: Path, file: Path, **named: Any) -> dict[str, Any]:
    """What `python app.py data --json` prints where `file` is the training file and there is no other."""
    settings = Settings(train_data=file, state_dir=directory / "state", **named)
    return data_report(check_data(settings), None).as_json()


def assert_as_expected(report: dict[str, Any], expected: dict[str, Any]) -> None:
    assert report["problems"] == []
    train = report["train"]
    assert (train["kept"], sum(train["rejected"].values()), train["repetitions"]) == (
        expected["kept"],
        expected["rejected"],
        expected["repetitions"],
    )
    assert train["rows"] == expected["kept"] + expected["rejected"] + expected["repetitions"]
    assert list(report["labels"]) == expected["labels"]
    assert sum(report["labels"].values()) == expected["kept"]


def given_settings(expected: dict[str, Any]) -> dict[str, str]:
    return {name.removeprefix("SENTIMENT_").lower(): value for name, value in expected["settings"].items()}


def test_there_is_a_case_of_each_kind() -> None:
    assert {path.name for path in CASES.iterdir()} - {"expected.json"} == set(EXPECTED)
    assert len(EXPECTED) >= 31


@pytest.mark.parametrize("name", EXPECTED)
def test_case(tmp_path: Path, name: str) -> None:
    expected = EXPECTED[name]
    report = report_on(tmp_path, CASES / name)
    if "error_names" in expected:
        (problem,) = report["problems"]
        assert all(word in problem for word in expected["error_names"]), problem
    else:
        assert_as_expected(report, expected)


@pytest.mark.parametrize(
    ("name", "kept", "labels"),
    [
        ("ambiguous_names.csv", 40, ["Negative", "Positive"]),
        ("no_header.csv", 41, ["Negative", "Positive"]),
        ("numeric_labels.csv", 40, ["Negative", "Positive"]),
    ],
)
def test_case_with_its_settings(tmp_path: Path, name: str, kept: int, labels: list[str]) -> None:
    report = report_on(tmp_path, CASES / name, **given_settings(EXPECTED[name]))
    assert_as_expected(report, {"kept": kept, "rejected": 0, "repetitions": 0, "labels": labels})


def test_notes_say_what_was_assumed(tmp_path: Path) -> None:
    for name, words in {
        "windows_1252.csv": "indows-1252",
        "other_names.csv": "'review' is used as the text",
        "label_spelling.csv": "also written",
        "rare_class.csv": "left out",
        "nul_byte.csv": "NUL",
        "numeric_labels.csv": "SENTIMENT_LABEL_NAMES=0=Negative,1=Positive",
    }.items():
        notes = report_on(tmp_path, CASES / name)["notes"]
        assert any(words in note for note in notes), (name, notes)


@pytest.mark.parametrize("name", ["contradiction.csv", "unclosed_quote.csv", "windows_1252.csv", "lines.jsonl"])
def test_a_case_may_be_compressed(tmp_path: Path, name: str) -> None:
    compressed = tmp_path / f"{name}.gz"
    compressed.write_bytes(gzip.compress((CASES / name).read_bytes()))
    assert_as_expected(report_on(tmp_path, compressed), EXPECTED[name])


@pytest.mark.parametrize("name", ["contradiction.csv", "spreadsheet_errors.csv", "label_spelling.csv", "cr_inside.csv"])
def test_a_case_may_be_in_another_encoding(tmp_path: Path, name: str) -> None:
    converted = tmp_path / name
    converted.write_bytes((CASES / name).read_bytes().decode("utf-8").encode("utf-16"))
    report = report_on(tmp_path, converted)
    assert_as_expected(report, EXPECTED[name])
    assert "16" in report["train"]["encoding"]


def test_a_case_may_have_a_validation_file_beside_it(tmp_path: Path) -> None:
    train, val = tmp_path / "train.csv", tmp_path / "val.csv"
    shutil.copyfile(CASES / "contradiction.csv", train)
    val.write_text("text,label\n" + "".join(f"text {i},{('Negative', 'Positive')[i % 2]}\n" for i in range(12)))
    report = report_on(tmp_path, train, val_data=val)
    assert (report["train"]["kept"], report["val"]["kept"], report["val"]["held_out"]) == (41, 12, False)
    assert sum(report["labels"].values()) == 53
