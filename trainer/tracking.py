"""Records trainings in MLflow, whose registry gives each model its version."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient, entities
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.protocol import MODEL_NAME
from trainer.dataset import Dataset
from trainer.evaluation import Evaluation, Scores
from trainer.record import FILE_NAME, TrainingRecord

EXPERIMENT = "sentiment"
CHAMPION = "champion"
"""MLflow's alias of the version that is deployed."""
_LONGEST_NAME = 240
"""Maximum characters of a metric's name without its prefix; MLflow allows 250 with it."""
_LONGEST_TAG = 5_000
"""Maximum characters of a tag's value on every MLflow server."""
_LONGEST_DIGEST = 32
"""Characters of a dataset's digest; MLflow allows 36."""
MODEL = "model"
"""Directory of a run's artifacts with the model: weights, tokenizer, training record, and later the pyfunc."""


@dataclass(frozen=True)
class Validated:
    """A classifier's results on the validation texts."""

    evaluation: Evaluation
    probabilities: Scores
    """[texts, labels], calibrated"""
    targets: npt.NDArray[np.integer]
    """[texts], indices of the right labels"""


@dataclass(frozen=True)
class Run:
    """What is recorded of a training or an import."""

    name: str
    """Name of the run; the version is put before it."""
    command: str
    """The subcommand of `app.py`."""
    hyperparameters: Mapping[str, Any]
    validated: Validated | None
    """None without validation texts."""
    dataset: Dataset
    tags: Mapping[str, str]
    history: Sequence[Mapping[str, float]] = ()
    """Metrics by step, as the trainer logged them."""
    baseline: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the baseline, which are recorded with the prefix `baseline_`."""


class Tracking:
    """The MLflow tracking server and model registry of the settings."""

    def __init__(self, settings: Settings) -> None:
        """Connect. The default store is created in the state directory.

        Raises:
            PipelineError: the tracking server cannot be reached or used.
        """
        self.uri = settings.mlflow_uri
        self._train_data, self._val_data = settings.train_data, settings.val_data
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

    def record_run(self, model_dir: Path, run: Run) -> str:
        """Record one finished training or import with its model, and return the run's id."""
        now = round(time.time() * 1000)
        run_id: str = self._client.create_run(
            self._experiment_id,
            start_time=now,
            tags={"mlflow.source.name": f"app.py {run.command}"},
            run_name=run.name[:_LONGEST_NAME],
        ).info.run_id
        found = run.validated
        figures = [*found.evaluation.metrics().items(), *_by_label(found.evaluation)] if found else []
        self._client.log_batch(
            run_id,
            metrics=[
                *(
                    Metric(name, value, now, round(entry["step"]))
                    for entry in run.history
                    for name, value in entry.items()
                    if name != "step"
                ),
                *(Metric(name, value, now, 0) for name, value in _named(figures)),
                *(Metric(f"baseline_{name}", value, now, 0) for name, value in _named(run.baseline.items())),
            ],
            params=[Param(name, str(value)) for name, value in run.hyperparameters.items()],
            tags=[RunTag(name, value) for name, value in run.tags.items()],
        )
        self._client.log_inputs(run_id, self._inputs(run.dataset))
        if found:
            labels, confusion = list(found.evaluation.f1_by_label), found.evaluation.confusion
            self._client.log_dict(
                run_id, {"labels": labels, "rows_right_columns_predicted": confusion}, "confusion_matrix.json"
            )
            # The import takes seconds, and only a run with results needs it.
            from trainer.figures import figures as draw

            for name, figure in draw(confusion, found.probabilities, found.targets, labels):
                self._client.log_figure(run_id, figure, name)
        self._client.log_artifacts(run_id, str(model_dir), MODEL)
        self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
        return run_id

    def _inputs(self, dataset: Dataset) -> list[DatasetInput]:
        """Describe the data files as MLflow's inputs of a run; a part without texts is left out."""
        val = self._train_data if dataset.is_held_out else self._val_data
        columns = [{"name": name, "type": "string", "required": True} for name in ("text", "label")]
        return [
            DatasetInput(
                entities.Dataset(
                    name=f"{path.name} ({context})",
                    digest=dataset.fingerprint[:_LONGEST_DIGEST],
                    source_type="local",
                    source=json.dumps({"uri": str(path.resolve())}),
                    schema=json.dumps({"mlflow_colspec": columns}),
                    profile=json.dumps({"num_rows": len(part.texts), "labels": Counter(part.labels)}),
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for context, path, part in (
                ("training", self._train_data, dataset.train),
                ("validation", val, dataset.val),
            )
            if part.texts
        ]

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
        run = self._client.get_run(run_id)
        source = f"{run.info.artifact_uri}/{MODEL}"
        try:
            self._client.create_registered_model(MODEL_NAME, description="Text sentiment, served by Triton.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        while True:
            version = int(self._client.create_model_version(MODEL_NAME, source, run_id).version)
            if version not in taken:
                self._client.update_run(run_id, name=f"version {version}: {run.info.run_name}")
                return version
            self._client.update_model_version(
                MODEL_NAME,
                str(version),
                f"Unused: version {version} of the model repository was there before this store.",
            )

    def save_record(self, record: TrainingRecord) -> None:
        """Save the training record, which contains the version, in the run."""
        self._client.log_dict(record.run_id, asdict(record), f"{MODEL}/{FILE_NAME}")

    def check_registered(self, record: TrainingRecord) -> None:
        """Raise a PipelineError unless the registry contains the version of `record`."""
        try:
            self._client.get_model_version(MODEL_NAME, str(record.version))
        except MlflowException as error:
            raise PipelineError(
                f"MLflow at {self.uri} does not return version {record.version}: {error.message} Check "
                f"SENTIMENT_MLFLOW_TRACKING_URI and SENTIMENT_STATE_DIR. If the store is gone: {record.again}"
            ) from error

    def record_export(self, run_id: str, version: int, bundle: Mapping[str, Any], pyfunc: Path) -> None:
        """Save `bundle.json` with the export's measurements, and the exported model as a pyfunc; tag the version."""
        self._client.log_dict(run_id, dict(bundle), "bundle.json")
        self._client.log_artifacts(run_id, str(pyfunc), MODEL)
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


def _by_label(evaluation: Evaluation) -> list[tuple[str, float]]:
    """Return precision and recall of each label, from the confusion matrix."""
    confusion = np.array(evaluation.confusion)
    right = confusion.diagonal()
    return [
        (f"{name}_{label}", float(value))
        for name, texts in (("precision", confusion.sum(axis=0)), ("recall", confusion.sum(axis=1)))
        for label, value in zip(evaluation.f1_by_label, right / np.maximum(texts, 1), strict=True)
    ]


def _named(metrics: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Make names of metrics that MLflow allows; labels may contain any characters, and be long."""
    allowed = "_-. /:"
    return [
        ("".join(char if char.isalnum() or char in allowed else "_" for char in name[:_LONGEST_NAME]), float(value))
        for name, value in metrics
    ]
