"""What MLflow keeps of a training, whatever its labels are called and however many they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from common.settings import Settings
from trainer.evaluation import Evaluation, evaluate
from trainer.tracking import MOST_DRAWN_LABELS, Tracking


def evaluation(labels: tuple[str, ...]) -> Evaluation:
    """Of a model that is always right."""
    return evaluate(np.eye(len(labels), dtype=np.float32), np.arange(len(labels)), labels)


@pytest.mark.parametrize(
    ("labels", "is_drawn"),
    [
        (("$", "$$", "$$$", "€"), True),
        (("积极", "消极", "सकारात्मक"), True),
        ((r"\frac{", "a^b$_", "x$y$z", "two\nlines", "a label of very many words " * 40), True),
        (tuple(f"label {number}" for number in range(MOST_DRAWN_LABELS)), True),
        (tuple(f"label {number}" for number in range(MOST_DRAWN_LABELS + 1)), False),
    ],
    ids=["dollars", "no glyphs", "formulas", "the most that are drawn", "more"],
)
def test_any_labels_are_recorded_and_drawn_if_they_are_few(
    tmp_path: Path, labels: tuple[str, ...], is_drawn: bool
) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    (tmp_path / "model").mkdir()
    found = evaluation(labels)
    run_id = Tracking(settings).record_run(tmp_path / "model", {"epochs": 1}, [], found, found, {})
    client = MlflowClient(settings.mlflow_uri)
    artifacts = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    recorded = json.loads((artifacts / "confusion_matrix.json").read_text())
    assert recorded == {"labels": list(labels), "rows_right_columns_predicted": found.confusion}
    picture = artifacts / "confusion_matrix.png"
    assert picture.exists() == is_drawn
    assert not is_drawn or picture.read_bytes().startswith(b"\x89PNG")
    assert client.get_run(run_id).info.status == "FINISHED"
