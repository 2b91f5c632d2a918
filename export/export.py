"""From `./model` to a published version: export, prove, publish."""

import logging
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from errors import PipelineError
from export.packed_graph import export_packed_graph
from export.parity import LEAST_AGREEMENT, Parity, check_parity, reference_probabilities
from serving.bundle import GRAPH, TOKENIZER, Bundle
from serving.engine import Engine
from serving.processor import usable_cores
from serving.repository import ModelRepository
from serving.runtime import ONNXRUNTIME, choose_runtime
from settings import Settings
from trainer.base_model import silence_loading
from trainer.dataset import Dataset, load_dataset
from trainer.evaluation import evaluate
from trainer.record import TrainingRecord
from trainer.tracking import Tracking

PARITY_TEXTS = 2_000
"""Validation texts that parity is proved on, drawn at random where there are more."""

log = logging.getLogger(__name__)


def export(settings: Settings) -> int:
    """Publish the trained model as a version of the repository; deploy it if none is deployed yet.

    Returns the version.

    Raises:
        PipelineError: there is no trained model, it is published already, the data changed since the
            training, or the graph's answers differ from torch's; nothing is published then.
    """
    record = TrainingRecord.load(settings.model_dir)
    repository = ModelRepository(settings.model_repository)
    tracking = Tracking(settings)
    # A version that was published and then killed before it was deployed goes on from there.
    if record.version not in repository.published():
        _publish(settings, record, repository, tracking)
    elif repository.deployed() is not None:
        raise PipelineError(
            f"Version {record.version}, the model in {settings.model_dir}, is published already, and a published "
            "version is never overwritten; train again for a new one."
        )
    if repository.deployed() is None:
        repository.deploy(record.version, instances=usable_cores())
        tracking.set_champion(record.version)
        log.info("Deployed version %d.", record.version)
    return record.version


def _load_trained(model_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    silence_loading()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
        # The engine reads this file alone, where `transformers` would fall back on others.
        Tokenizer.from_file(str(model_dir / TOKENIZER))
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(model_dir, use_safetensors=True)
    except Exception as error:  # tokenizers raises no narrower one
        reason = str(error).strip().partition("\n")[0]
        raise PipelineError(
            f"The trained model in {model_dir} is incomplete or damaged ({reason}); train again."
        ) from error
    return model, tokenizer


def _publish(settings: Settings, record: TrainingRecord, repository: ModelRepository, tracking: Tracking) -> None:
    dataset = load_dataset(settings.train_data, settings.val_data)
    if dataset.fingerprint != record.data_fingerprint:
        raise PipelineError(
            f"{settings.train_data} or {settings.val_data} changed since the model in {settings.model_dir} was "
            "trained, so its figures would not be comparable; train again."
        )
    tracking.check_registered(record.version)
    model, tokenizer = _load_trained(settings.model_dir)
    try:
        staging = repository.staging_directory(record.version)
        try:
            bundle = _build(settings, record, dataset, model, tokenizer, staging)
            tracking.record_export(record.run_id, record.version, asdict(bundle))
            repository.publish(staging, record.version)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise PipelineError(
            f"Version {record.version} could not be written to {repository.model}: {error}. "
            "Make room, then run `python app.py export` again."
        ) from error
    log.info("Published version %d in %s.", record.version, repository.version_directory(record.version))


def _build(
    settings: Settings,
    record: TrainingRecord,
    dataset: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> Bundle:
    """Write the whole bundle into `directory`, and prove it there."""
    log.info("Exporting version %d to ONNX.", record.version)
    export_packed_graph(model, record.temperature, directory / GRAPH)
    shutil.copyfile(settings.model_dir / TOKENIZER, directory / TOKENIZER)
    bundle = Bundle(
        version=record.version,
        labels=record.labels,
        max_length=record.max_length,
        padding_token=tokenizer.pad_token_id,
        base_model=record.base_model,
        data_fingerprint=record.data_fingerprint,
        mlflow_run=record.run_id,
        metrics={},
        parity={},
    )
    bundle.save(directory)

    texts = dataset.val.texts
    sample = random.Random(0).sample(texts, min(len(texts), PARITY_TEXTS))
    log.info("Comparing the graph's answers with torch's on %d texts.", len(sample))
    reference = reference_probabilities(model, tokenizer, sample, record.max_length, record.temperature)
    serving_runtime = choose_runtime(settings.runtime)
    parity = {}
    # ONNX Runtime's float32 shows that the graph is right; the serving runtime, that it may be served so.
    for name in dict.fromkeys((ONNXRUNTIME, serving_runtime)):
        engine = Engine(directory, name, threads=usable_cores())
        parity[f"{name} {engine.runtime.precision}"] = asdict(_proved(engine, check_parity(engine, sample, reference)))
    targets = np.array([record.labels.index(label) for label in dataset.val.labels])
    evaluation = evaluate(engine.classify(texts).values, targets, record.labels)
    log.info("As it will be served: accuracy %.4f, macro F1 %.4f.", evaluation.accuracy, evaluation.macro_f1)
    bundle = replace(bundle, metrics=evaluation.metrics(), parity=parity)
    bundle.save(directory)
    return bundle


def _proved(engine: Engine, parity: Parity) -> Parity:
    what = f"{engine.runtime.name} ({engine.runtime.precision})"
    log.info(
        "%s: torch's label on %.2f %% of the texts, in the worst of %d mixes of batch-mates; "
        "largest difference of a probability %.4f.",
        what,
        100 * parity.label_agreement,
        parity.mixes,
        parity.largest_difference,
    )
    if parity.label_agreement < LEAST_AGREEMENT:
        raise PipelineError(
            f"Version {engine.bundle.version} is not published: through {what} the graph gives torch's label on "
            f"{parity.label_agreement:.2%} of {parity.texts} texts, and at least {LEAST_AGREEMENT:.1%} are needed."
        )
    return parity
