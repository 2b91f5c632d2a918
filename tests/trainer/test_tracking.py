"""What MLflow keeps of a training, whatever its labels are called and however many they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from common.settings import Settings
from trainer.dataset import Dataset, LabelledTexts
from trainer.evaluation import evaluate
from trainer.figures import MOST_DRAWN_LABELS
from trainer.tracking import Run, Tracking, Validated


def run(labels: tuple[str, ...]) -> Run:
    """Of a model that is always right, on as many texts as there are labels."""
    probabilities, targets = np.eye(len(labels), dtype=np.float32), np.arange(len(labels))
    texts = LabelledTexts([f"text {number}" for number in range(len(labels))], list(labels))
    return Run(
        name="training of an encoder",
        command="train",
        hyperparameters={"epochs": 1},
        validated=Validated(evaluate(probabilities, targets, labels), probabilities, targets),
        dataset=Dataset(LabelledTexts([], []), texts, labels, "f" * 64, []),
        tags={},
    )


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
    found = run(labels)
    assert found.validated is not None
    run_id = Tracking(settings).record_run(tmp_path / "model", found)
    client = MlflowClient(settings.mlflow_uri)
    artifacts = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    recorded = json.loads((artifacts / "confusion_matrix.json").read_text())
    assert recorded == {"labels": list(labels), "rows_right_columns_predicted": found.validated.evaluation.confusion}
    for name, drawn in {"confusion_matrix": is_drawn, "roc_curves": is_drawn, "reliability": True}.items():
        picture = artifacts / f"{name}.png"
        assert picture.exists() == drawn
        assert not drawn or picture.read_bytes().startswith(b"\x89PNG")
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_says_what_it_is_of_what_it_learnt_from_and_how_each_label_does(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state", val_data=tmp_path / "val.csv")
    (tmp_path / "model").mkdir()
    tracking = Tracking(settings)
    run_id = tracking.record_run(tmp_path / "model", run(("Negative", "Positive")))
    assert tracking.register(run_id, taken=set()) == 1
    found = MlflowClient(settings.mlflow_uri).get_run(run_id)
    assert found.info.run_name == "version 1: training of an encoder"
    assert found.inputs is not None
    (validation,) = found.inputs.dataset_inputs
    assert validation.dataset.name == "val.csv (validation)"
    assert json.loads(validation.dataset.source) == {"uri": str(tmp_path / "val.csv")}
    assert [(tag.key, tag.value) for tag in validation.tags] == [("mlflow.data.context", "validation")]
    assert {name: found.data.metrics[name] for name in ("precision_Negative", "recall_Positive")} == {
        "precision_Negative": 1.0,
        "recall_Positive": 1.0,
    }
