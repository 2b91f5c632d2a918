"""Records trainings in MLflow, whose registry gives each model its version."""

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from sklearn.metrics import ConfusionMatrixDisplay

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.protocol import MODEL_NAME
from trainer.evaluation import Evaluation
from trainer.record import FILE_NAME, TrainingRecord

EXPERIMENT = "sentiment"
CHAMPION = "champion"
"""MLflow's alias of the version that is deployed."""
MOST_DRAWN_LABELS = 20
"""Maximum labels for which the confusion matrix is also drawn. 20 labels take a second and 120 MB, 40 four times both,
and nobody can read 1,600 cells."""
_LONGEST_DRAWN_LABEL = 30
"""Maximum characters of a label in the drawing; more would leave no room for the cells."""
_LONGEST_HORIZONTAL_LABEL = 10
"""Longer labels of columns are drawn vertically, or neighbours would overlap."""
_LONGEST_NAME = 240
"""Maximum characters of a metric's name without its prefix; MLflow allows 250 with it."""
_LONGEST_TAG = 5_000
"""Maximum characters of a tag's value on every MLflow server."""


class Tracking:
    """The MLflow tracking server and model registry of the settings."""

    def __init__(self, settings: Settings) -> None:
        """Connect. The default store is created in the state directory.

        Raises:
            PipelineError: the tracking server cannot be reached or used.
        """
        self.uri = settings.mlflow_uri
        artifacts = None
        if settings.mlflow_tracking_uri is None:
            try:
                settings.state_dir.mkdir(parents=True, exist_ok=True)
                # MLflow would try for minutes to open a store that cannot be written.
                with (settings.state_dir / "mlflow.db").open("ab"):
                    pass
            except OSError as error:
                raise PipelineError(
                    f"The state directory {settings.state_dir} cannot be used: {error.strerror}. "
                    "Make it writable for this account, or set SENTIMENT_STATE_DIR to another one."
                ) from error
            artifacts = (settings.state_dir / "mlflow-artifacts").resolve().as_uri()
        _keep_percent_signs()
        try:
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment_id = (
                experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT, artifacts)
            )
        except MlflowException as error:
            raise PipelineError(
                f"MLflow at {self.uri} cannot be used: {error.message} Check SENTIMENT_MLFLOW_TRACKING_URI."
            ) from error

    def record_run(
        self,
        model_dir: Path,
        hyperparameters: Mapping[str, Any],
        history: list[dict[str, float]],
        evaluation: Evaluation,
        baseline: Evaluation,
        tags: Mapping[str, str],
    ) -> str:
        """Record one finished training with its model, and return the run's id.

        `history` are metrics by step, as the trainer logged them. Metrics of the `baseline` get the prefix `baseline_`.
        """
        now = round(time.time() * 1000)
        run = self._client.create_run(self._experiment_id, start_time=now, tags={"mlflow.source.name": "app.py train"})
        run_id: str = run.info.run_id
        self._client.log_batch(
            run_id,
            metrics=[
                *(
                    Metric(name, value, now, round(entry["step"]))
                    for entry in history
                    for name, value in entry.items()
                    if name != "step"
                ),
                *(Metric(name, value, now, 0) for name, value in _named(evaluation.metrics())),
                *(Metric(f"baseline_{name}", value, now, 0) for name, value in _named(baseline.metrics())),
            ],
            params=[Param(name, str(value)) for name, value in hyperparameters.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        labels = list(evaluation.f1_by_label)
        self._client.log_dict(
            run_id, {"labels": labels, "rows_right_columns_predicted": evaluation.confusion}, "confusion_matrix.json"
        )
        if len(labels) <= MOST_DRAWN_LABELS:
            with warnings.catch_warnings():
                # Names in scripts that matplotlib's font lacks are drawn as boxes; the JSON file contains them.
                warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
                self._client.log_figure(run_id, confusion_figure(evaluation.confusion, labels), "confusion_matrix.png")
        self._client.log_artifacts(run_id, str(model_dir), "model")
        self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
        return run_id

    def record_data(self, run_id: str, report: Mapping[str, Any], suspects: Path | None) -> None:
        """Save the report on the data, and the list of suspicious labels if there is one, in the run."""
        self._client.log_dict(run_id, dict(report), "data_report.json")
        if suspects is not None:
            self._client.log_artifact(run_id, str(suspects))

    def register(self, run_id: str, taken: set[int]) -> int:
        """Register the run's model, and return its version.

        `taken` are versions that already exist in the model repository, from an MLflow store that was deleted. One
        integer identifies a model everywhere, so such numbers are skipped.
        """
        source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
        try:
            self._client.create_registered_model(MODEL_NAME, description="Text sentiment, served by Triton.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        while True:
            version = int(self._client.create_model_version(MODEL_NAME, source, run_id).version)
            if version not in taken:
                return version
            self._client.update_model_version(
                MODEL_NAME,
                str(version),
                f"Unused: version {version} of the model repository was there before this store.",
            )

    def save_record(self, record: TrainingRecord) -> None:
        """Save the training record, which contains the version, in the run."""
        self._client.log_dict(record.run_id, asdict(record), f"model/{FILE_NAME}")

    def check_registered(self, version: int) -> None:
        """Raise a PipelineError unless the registry contains `version`."""
        try:
            self._client.get_model_version(MODEL_NAME, str(version))
        except MlflowException as error:
            raise PipelineError(
                f"MLflow at {self.uri} does not return version {version}: {error.message} Check "
                "SENTIMENT_MLFLOW_TRACKING_URI and SENTIMENT_STATE_DIR. If the store is gone, train again."
            ) from error

    def record_export(self, run_id: str, version: int, bundle: Mapping[str, Any]) -> None:
        """Save `bundle.json` with the export's measurements in the run, and tag the version."""
        self._client.log_dict(run_id, dict(bundle), "bundle.json")
        self._client.set_model_version_tag(MODEL_NAME, str(version), "exported", "true")

    def record_verdicts(self, version: int, verdicts: Mapping[str, bool]) -> None:
        """Record the results of the gates as tags of the version."""
        for gate, passed in verdicts.items():
            self._client.set_model_version_tag(MODEL_NAME, str(version), f"gate.{gate}", str(passed).lower())

    def record_sources(self, version: int, rows: Mapping[str, int]) -> None:
        """Record the number of training rows of each feedback source as a tag of the version."""
        counts = ", ".join(f"{source} {count}" for source, count in sorted(rows.items()))
        self._client.set_model_version_tag(MODEL_NAME, str(version), "feedback", counts[:_LONGEST_TAG] or "none")

    def set_champion(self, version: int) -> None:
        """Set the alias `champion` to `version`.

        Raises:
            PipelineError: MLflow cannot be used, or does not know the version.
        """
        try:
            self._client.set_registered_model_alias(MODEL_NAME, CHAMPION, str(version))
        except MlflowException as error:
            raise PipelineError(f"MLflow's alias cannot be set to version {version}: {error.message}") from error

    def aliased(self) -> set[int]:
        """All versions that have an alias."""
        try:
            return {int(version) for version in self._client.get_registered_model(MODEL_NAME).aliases.values()}
        except MlflowException as error:
            raise PipelineError(f"MLflow does not return its aliases: {error.message}") from error


def _keep_percent_signs() -> None:
    """Let MLflow find its migrations if the path of the Python environment contains a percent sign.

    MLflow gives that path to Alembic as an option, where a percent sign begins a placeholder.
    """
    package = utils._get_package_dir()  # type: ignore[no-untyped-call]
    if "%" in package:
        descriptor = os.open(package, os.O_RDONLY | os.O_DIRECTORY)  # open as long as this process may use MLflow
        utils._get_package_dir = lambda: f"/proc/self/fd/{descriptor}"


def _named(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Make names of metrics that MLflow allows; labels may contain any characters, and be long."""
    allowed = "_-. /:"
    return [
        ("".join(char if char.isalnum() or char in allowed else "_" for char in name[:_LONGEST_NAME]), float(value))
        for name, value in metrics.items()
    ]


def confusion_figure(confusion: list[list[int]], labels: list[str]) -> Figure:
    """Draw a confusion matrix of up to `MOST_DRAWN_LABELS` labels, with the number of texts in each cell."""
    size = 2.6 + 0.9 * len(labels)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shown = [label if len(label) <= _LONGEST_DRAWN_LABEL else f"{label[:_LONGEST_DRAWN_LABEL]}…" for label in labels]
    rotation = "vertical" if max(map(len, shown)) > _LONGEST_HORIZONTAL_LABEL else "horizontal"
    display = ConfusionMatrixDisplay(np.array(confusion), display_labels=shown)
    display.plot(ax=axes, cmap="Blues", values_format=",d", xticks_rotation=rotation)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a label such as $$ is no formula
    return figure
