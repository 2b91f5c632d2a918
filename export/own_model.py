"""From a classifier that was fine-tuned elsewhere to `./model` and a registered version, as a training makes them."""

import logging
from collections.abc import Sequence

import numpy as np

from common.errors import PipelineError
from common.settings import Settings
from export.parity import reference_probabilities
from trainer.dataset import Dataset
from trainer.evaluation import at_bound, calibrated, evaluate, fit_temperature, logits_of, targets_of, under_thresholds
from trainer.judging_data import judging_data
from trainer.own_classifier import load_classifier, spelt_as
from trainer.record import TrainingRecord
from trainer.tracking import Run, Tracking, Validated
from trainer.train import replace_directory, save_beside

log = logging.getLogger(__name__)


def import_classifier(
    settings: Settings, source: str, labels: Sequence[str], taken: set[int], deployed_labels: Sequence[str] = ()
) -> tuple[TrainingRecord, Dataset]:
    """Load, calibrate and evaluate a classifier, record it in MLflow, and save it to the model directory.

    Return its record, and the data by which it is judged.

    `source` is a directory or a name on the hub; `labels` name its outputs, unless its configuration is right. With
    validation texts, the temperature that calibrates it is fitted on them; without any, its scores stay as they are.
    `taken` are versions that the registry must not give again. Labels are spelt as in the data or, where these lack
    them, as `deployed_labels`, those of the deployed version.

    Raises:
        PipelineError: it cannot be imported (`load_classifier`), the data do not fit, or MLflow or the disk fails.
    """
    classifier, names = load_classifier(settings, source, labels)
    given, names = names, spelt_as(names, deployed_labels)
    dataset = judging_data(settings, source, names)
    dataset.log_notes()
    names = spelt_as(names, dataset.labels)
    if given != names:
        log.info("The labels %s are spelt as in the data: %s.", ", ".join(given), ", ".join(names))
    classifier.model.config.id2label = dict(enumerate(names))
    classifier.model.config.label2id = {name: index for index, name in enumerate(names)}
    log.info("Importing %s with the labels %s.", source, ", ".join(names))
    tracking = Tracking(settings)
    temperature, validated = 1.0, None
    texts = dataset.val.texts
    if texts:
        scores = reference_probabilities(classifier.model, classifier.tokenizer, texts, classifier.max_length, 1.0)
        if not np.isfinite(scores).all():
            raise PipelineError(
                f"{source} gives scores that are not numbers (NaN), so its weights are damaged. Import a sound copy."
            )
        logits = logits_of(scores)
        targets = targets_of(dataset.val.labels, names)
        temperature = fit_temperature(logits, targets)
        probabilities = calibrated(logits, temperature)
        validated = Validated(evaluate(probabilities, targets, names), probabilities, targets)
        _tell(settings, validated, temperature, is_held_out=dataset.is_held_out)
    else:
        log.warning(
            "There is no validation file (%s), so the classifier is neither evaluated nor calibrated: its scores stay "
            "as they are.",
            settings.val_data,
        )
    staging = save_beside(settings.model_dir, classifier.model, classifier.tokenizer)
    run_id = tracking.record_run(
        staging,
        Run(
            name=f"import of {source}",
            command="import",
            hyperparameters={"temperature": temperature, "source": source},
            validated=validated,
            dataset=dataset,
            tags={"data_fingerprint": dataset.fingerprint},
        ),
    )
    record = TrainingRecord(
        version=tracking.register(run_id, taken=taken),
        run_id=run_id,
        base_model=source,
        labels=names,
        max_length=classifier.max_length,
        temperature=temperature,
        data_fingerprint=dataset.fingerprint,
        metrics=validated.evaluation.metrics() if validated else {},
        training_key=f"import of {source}",
        data=dataset.counts,
        imported=True,
    )
    tracking.save_record(record)
    record.save(staging)
    replace_directory(settings.model_dir, staging)
    log.info("Imported %s as version %d, and recorded it in MLflow at %s.", source, record.version, tracking.uri)
    return record, dataset


def _tell(settings: Settings, validated: Validated, temperature: float, *, is_held_out: bool) -> None:
    """Log the results on the validation texts, and what is doubtful about them."""
    found = validated.evaluation
    log.info("%s", found.summary(temperature))
    if is_held_out:
        log.warning(
            "These texts are a part of %s. If the classifier was trained on that file, its figures are too high.",
            settings.train_data,
        )
    for warning in [at_bound(temperature), *under_thresholds(settings, found.metrics(), "validation")]:
        if warning:
            log.warning("%s.", warning)
