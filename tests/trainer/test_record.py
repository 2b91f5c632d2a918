"""`training.json` is read whatever release wrote it, or it is said what is wrong with it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from common.errors import PipelineError
from trainer.record import TrainingRecord

RECORD = TrainingRecord(3, "a run", "encoder", ("Negative", "Positive"), 64, 0.25, "data", {"accuracy": 0.5})


def test_what_a_newer_release_added_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps({**asdict(RECORD), "tomorrow": {"a": [1]}}))
    assert TrainingRecord.load(tmp_path) == RECORD


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        '{"version": 1',
        json.dumps({**asdict(RECORD), "labels": "ab"}),
        json.dumps({**asdict(RECORD), "temperature": "0.25"}),
        json.dumps({name: value for name, value in asdict(RECORD).items() if name != "run_id"}),
    ],
)
def test_damage_is_told_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(PipelineError, match=r"training\.json is damaged \(.*\)\. Run `python app.py train` again"):
        TrainingRecord.load(tmp_path)
