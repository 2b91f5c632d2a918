"""The steps of one export: from `./model` to a published version."""

import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.errors import PipelineError
from common.progress import under_way
from common.settings import Settings
from common.wording import counted
from export.first_stage import add_first_stage
from export.graph import GraphError, export_graph
from export.int8 import CALIBRATION_TEXTS, Inputs, calibration_inputs
from export.mlflow_model import mlflow_model
from export.parity import reference_probabilities
from export.variants import Validation, prove_variants
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.texts import text_fault
from serving.model_repo.variants import FLOAT32, FLOAT_GRAPH, ONNXRUNTIME
from trainer.architectures import why_unpacked
from trainer.base_model import silence_loading
from trainer.dataset import Dataset, load_dataset
from trainer.evaluation import evaluate, targets_of, under_thresholds
from trainer.first_version import sampled
from trainer.judging_data import judging_data
from trainer.kept_data import keep
from trainer.record import TrainingRecord
from trainer.tracking import Tracking

MOST_TEXTS = 2_000
"""Maximum validation texts for trying variants; a random sample if there are more."""
MOST_QUICK_TEXTS = 100
"""Maximum validation texts for trying the one variant of a quick first version; a random sample if there are more."""

RANDOM_TEXTS, MOST_RANDOM_TOKENS = 300, 100
"""Number of texts that are drawn from the vocabulary where there are no data, and their maximum length in tokens."""

log = logging.getLogger(__name__)


def export(settings: Settings, data: Dataset | None = None, unlabelled: Sequence[str] = ()) -> int:
    """Publish the trained model as a version of the repository; deploy it if none is deployed yet.

    `data` are those that an import has read already. A first stage also learns from `unlabelled` texts. Returns the
    version.

    Raises:
        PipelineError: there is no trained model, it is already published, or the data have changed since the training.
            Nothing is published then.
        GraphError: no graph can be made that agrees with torch. Nothing is published then.
    """
    record = TrainingRecord.load(settings.model_dir)
    repository = ModelRepository(settings.model_repository)
    tracking = Tracking(settings)
    # An export that was killed between publishing and deploying continues with deploying.
    if record.version not in repository.published():
        _publish(settings, record, data, unlabelled, repository, tracking)
    elif repository.deployed() is not None:
        raise PipelineError(
            f"Version {record.version}, the model in {settings.model_dir}, is already published, and a published "
            f"version is never overwritten. For a new version: {record.again}"
        )
    if repository.deployed() is None:
        repository.deploy(record.version)
        tracking.set_champion(record.version)
        log.info("Version %d is the one to serve; Triton loads it when it starts.", record.version)
    return record.version


def load_trained(model_dir: Path, record: TrainingRecord) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the trained model with this `record`, and its tokenizer.

    Raises:
        PipelineError: a file is missing or damaged.
    """
    silence_loading()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
        # The engine reads only this file; `transformers` would fall back to others.
        Tokenizer.from_file(str(model_dir / TOKENIZER))
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(model_dir, use_safetensors=True)
    except Exception as error:  # tokenizers raises no narrower exception
        reason = str(error).strip().partition("\n")[0]
        raise PipelineError(
            f"The trained model in {model_dir} is incomplete or damaged ({reason}). {record.again}"
        ) from error
    return model, tokenizer


def _publish(
    settings: Settings,
    record: TrainingRecord,
    data: Dataset | None,
    unlabelled: Sequence[str],
    repository: ModelRepository,
    tracking: Tracking,
) -> None:
    if data is None:
        data = judging_data(settings, record.base_model, record.labels) if record.imported else load_dataset(settings)
    dataset = data
    if record.quick:
        dataset = sampled(dataset)
    if dataset.fingerprint != record.data_fingerprint:
        raise PipelineError(
            f"{settings.train_data} or {settings.val_data} has changed since the model in {settings.model_dir} was "
            f"{'imported' if record.imported else 'trained'}, so its results would not be comparable. {record.again}"
        )
    tracking.check_registered(record)
    model, tokenizer = load_trained(settings.model_dir, record)
    try:
        staging = repository.staging_directory(record.version)
        try:
            bundle = _build(settings, record, dataset, unlabelled, model, tokenizer, staging)
            with mlflow_model(staging) as pyfunc:
                tracking.record_export(record.run_id, record.version, asdict(bundle), pyfunc)
            repository.publish(staging, record.version)
            if repository.deployed() is None and data.val.texts:  # then this version is deployed next
                keep(settings, record.version, data)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except GraphError as error:
        raise type(error)(f"{error} {record.another}") from error
    except OSError as error:
        again = record.again if record.imported else "Then run `python app.py export` again."
        raise PipelineError(
            f"Version {record.version} cannot be written to {repository.model}: {error}. Free some space. {again}"
        ) from error
    log.info("Published version %d in %s.", record.version, repository.version_directory(record.version))


def _build(
    settings: Settings,
    record: TrainingRecord,
    dataset: Dataset,
    unlabelled: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> Bundle:
    """Write the whole bundle to `directory`, and verify it there."""
    log.info("Exporting version %d: writing its model as an ONNX graph, the format that is served.", record.version)
    with under_way("writing the ONNX graph"):
        export_graph(model, record.temperature, directory / FLOAT_GRAPH)
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
        proofs=(),
        training_key=record.training_key,
        baseline=record.baseline,
        data=record.data,
        quick=record.quick,
        imported=record.imported,
        updates=record.updates,
        packed=not why_unpacked(model.config.to_dict()),
    )
    bundle.save(directory)

    validation, chosen = _validation(record, dataset, model, tokenizer)
    kind = "texts" if dataset.val.texts else "texts of random words"
    log.info(
        "Choosing how to run the graph. Each way (runtime and number format) must predict as the trained model does in "
        "torch, on %s %s; the fastest of those is used.",
        f"{len(validation.texts):,}",
        kind,
    )
    # Of a quick version, and without texts of people, float32 is proven, and nothing else is tried.
    is_float32 = record.quick or not dataset.val.texts
    wanted = Wanted(ONNXRUNTIME, FLOAT32) if is_float32 else Wanted(settings.runtime, settings.precision)
    calibration: list[Inputs] = []
    if not is_float32:  # only int8 is calibrated
        calibration = list(calibration_inputs(chosen, directory / TOKENIZER, bundle))
    bundle = replace(bundle, proofs=prove_variants(directory, validation, calibration, wanted))
    bundle.save(directory)
    choice = choose_variant(bundle, wanted)
    log.log(
        logging.INFO if wanted.allows(choice.variant) else logging.WARNING,
        "On this machine, Triton will run %s: %s.",
        choice.variant,
        choice.reason,
    )
    if not dataset.val.texts:
        return bundle
    if not record.quick and not record.imported:
        bundle = add_first_stage(settings, bundle, directory, choice.variant, model, tokenizer, dataset, unlabelled)
    with (
        under_way("evaluating the exported model on the validation texts"),
        Engine(directory, choice.variant, usable_cores()) as engine,
    ):
        answers = engine.classify(dataset.val.texts).values
    evaluation = evaluate(answers, targets_of(dataset.val.labels, record.labels), record.labels)
    log.info(
        "The exported model on %s: accuracy %.4f, macro F1 %.4f.",
        counted(evaluation.texts, "validation text"),
        evaluation.accuracy,
        evaluation.macro_f1,
    )
    bundle = replace(bundle, metrics=evaluation.metrics())
    if problems := under_thresholds(settings, bundle.metrics, "validation"):
        follows = "The full training follows" if record.quick else "Each check will report it"
        log.warning("Version %d is under a threshold: %s. %s.", record.version, "; ".join(problems), follows)
    bundle.save(directory)
    return bundle


def _validation(
    record: TrainingRecord, dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Validation, list[str]]:
    """Return the texts on which graphs are compared with torch, and those that calibrate int8 graphs.

    Without data, random words of the tokenizer's vocabulary take their place.
    """
    most = MOST_QUICK_TEXTS if record.quick else MOST_TEXTS
    sample = dataset.val.at(random.Random(0).sample(range(len(dataset.val.texts)), min(len(dataset.val.texts), most)))
    texts = sample.texts or _random_texts(tokenizer)
    with under_way(f"classifying {len(texts):,} texts with torch, to compare the graphs with"):
        reference = reference_probabilities(model, tokenizer, texts, record.max_length, record.temperature)
    targets = targets_of(sample.labels, record.labels) if sample.texts else None
    learnt = dataset.train.texts or texts
    return (
        Validation(texts=texts, targets=targets, labels=record.labels, reference=reference),
        random.Random(1).sample(learnt, min(len(learnt), CALIBRATION_TEXTS)),
    )


def _random_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    draw = random.Random(0)
    tokens = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = (
        str(tokenizer.decode(draw.choices(tokens, k=draw.randint(1, MOST_RANDOM_TOKENS)))) for _ in range(RANDOM_TEXTS)
    )
    return [text for text in texts if text_fault(text) is None]
