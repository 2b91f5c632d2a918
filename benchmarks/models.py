"""Creates the model of a benchmark run: a repository with a deployed version, and its weights for `transformers`."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from benchmarks.rated_texts import Row, pipeline_settings, train_once, unknown_rows
from benchmarks.texts import REVIEWS, text_set
from common.settings import PACKAGED_BASE
from export.graph import export_graph
from export.int8 import CALIBRATION_TEXTS, calibration_inputs, quantize
from export.variants import measure_speeds, too_slow, unmeasured_proof
from serving.backend.cpu import arithmetic, usable_cores
from serving.backend.engine import Engine
from serving.backend.runtime import float_variants, int8_variants
from serving.backend.stage import load_tokenizer
from serving.backend.variant_choice import Choice, Wanted, choose_variant
from serving.model_repo.bundle import FIRST_STAGE, TOKENIZER, Bundle, Proof
from serving.model_repo.repository import ModelRepository
from serving.model_repo.variants import FLOAT_GRAPH, INT8, Variant
from trainer.base_model import silence_loading
from trainer.base_tokenizer import packaged_directory
from trainer.dataset import load_dataset
from trainer.record import TrainingRecord
from trainer.sample_data import REVIEW_DOMAINS

ModelKind = Literal["packaged", "bert-base", "base-trained"]
MODEL_KINDS: tuple[ModelKind, ...] = get_args(ModelKind)

TRAINED = Path("benchmarks/results/base-trained-pipeline")
"""Directory of the pipeline that trains `base-trained`."""
LEARNT_REVIEWS = 6_000
LIMIT = 0.01
"""Maximum share of texts whose label may differ with two stages."""

_LABELS = ("Negative", "Positive")
_MAX_LENGTH = 512
_UNTRAINED = (
    "untrained weights: the speed is a trained model's; the accuracy gates are set aside, so that an int8 graph serves "
    "where it is faster"
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkModel:
    """One set of weights in the two formats that the servers read."""

    description: str
    repository: ModelRepository
    """The run's own repository, in which `version` is deployed."""
    version: int
    transformers: Path
    """Directory for `from_pretrained` and `export_standard`."""
    one_stage: ModelRepository | None = None
    """Another repository with the same version without its first stage, if the version has two stages."""
    unknown: Sequence[Row] = ()
    """Reviews that a trained model has not seen, with their labels; none if the model is not trained."""

    @property
    def alone(self) -> Path:
        """Directory of the bundle without a first stage."""
        return (self.one_stage or self.repository).version_directory(self.version)

    @property
    def directory(self) -> Path:
        """Directory of the version's bundle."""
        return self.repository.version_directory(self.version)

    def tokenizer(self) -> Tokenizer:
        """Load the model's tokenizer, which does not pad, and truncates at the model's maximum length."""
        return load_tokenizer(self.directory / TOKENIZER, Bundle.load(self.directory).max_length)

    def choice(self) -> Choice:
        """Return the variant that the pipeline's backend chooses with default settings, and the reason."""
        return choose_variant(Bundle.load(self.directory), Wanted())

    def variants(self) -> list[Variant]:
        """Return all variants that this processor can run and the bundle has a graph for, including refused ones."""
        return [*float_variants(), *(int8 for int8 in int8_variants() if (self.directory / int8.graph).is_file())]

    def refusals(self) -> list[str]:
        """Return a message for each variant that is refused on this processor, with the reason."""
        proofs = Bundle.load(self.directory).proofs
        here = [proof for proof in proofs if proof.refused and proof.arithmetic == arithmetic()]
        return [f"{proof.variant} does not serve. {proof.refused}" for proof in here]


def make_model(kind: ModelKind, directory: Path, progress: Progress) -> BenchmarkModel:
    """Create the model of the given kind in `directory`.

    `packaged` is the packaged encoder with an untrained head; `bert-base` is an untrained BERT of base size. Both get
    all graphs. `base-trained` is the packaged encoder of base size, fine-tuned on a part of the sample data, with a
    first stage. Its first run takes half an hour more, later ones use the same model (`TRAINED`).

    Raises:
        PipelineError: the packaged encoder cannot be downloaded, or the training or the export fails.
    """
    silence_loading()
    if kind == "base-trained":
        return _trained(directory, progress)
    torch.manual_seed(0)
    encoder = packaged_directory()
    if kind == "packaged":
        model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(_LABELS))
        description = f"all-MiniLM-L6-v2, {_millions(model)} parameters, {_UNTRAINED}"
    else:
        vocabulary = json.loads((encoder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        config = AutoConfig.for_model("bert", vocab_size=vocabulary, num_labels=len(_LABELS))
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        description = f"BERT-base size, {_millions(model)} parameters, {_UNTRAINED}"
    saved = directory / "transformers"
    model.save_pretrained(saved)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(saved)
    TrainingRecord(1, "", description, _LABELS, _MAX_LENGTH, 1.0, "", {}).save(saved)
    texts = text_set(REVIEWS, load_tokenizer(saved / TOKENIZER, _MAX_LENGTH))
    return publish_untrained(model, saved, directory, description, texts, progress)


def _trained(directory: Path, progress: Progress) -> BenchmarkModel:
    settings = pipeline_settings(TRAINED.resolve(), base_model=PACKAGED_BASE, epochs=1, max_disagreement=LIMIT)
    progress(f"fine-tuning on {LEARNT_REVIEWS:,} reviews and exporting, unless {TRAINED} has the model")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_once(settings, LEARNT_REVIEWS, seed=0)
    repository = ModelRepository(settings.model_repository)
    version = repository.require_deployed()
    bundle = Bundle.load(repository.version_directory(version))
    one_stage = None
    if bundle.first_stage:
        one_stage = ModelRepository(directory / "one_stage")
        shutil.copytree(repository.root, one_stage.root, ignore=shutil.ignore_patterns(FIRST_STAGE))
        replace(bundle, first_stage=None).save(one_stage.version_directory(version))
    epoch = f"fine-tuned for one epoch on {LEARNT_REVIEWS:,} of the sample reviews"
    description = f"{bundle.base_model}, {epoch}; the texts are reviews that it does not know"
    unknown = unknown_rows(load_dataset(settings), REVIEW_DOMAINS)
    return BenchmarkModel(description, repository, version, settings.model_dir, one_stage, unknown)


def publish_untrained(
    model: PreTrainedModel, saved: Path, directory: Path, description: str, texts: Sequence[str], progress: Progress
) -> BenchmarkModel:
    """Publish and deploy `model`, whose tokenizer is in `saved`, in a repository under `directory`.

    The int8 graphs are calibrated on some of the texts. The speed of each variant is measured, but no accuracy.
    """
    repository = ModelRepository(directory / "triton_repo")
    staging = repository.staging_directory(1)
    progress("exporting the float graph")
    export_graph(model, 1.0, staging / FLOAT_GRAPH)
    shutil.copyfile(saved / TOKENIZER, staging / TOKENIZER)
    bundle = Bundle(
        version=1,
        labels=_LABELS,
        max_length=min(_MAX_LENGTH, model.config.max_position_embeddings),
        padding_token=model.config.pad_token_id,
        base_model=description,
        data_fingerprint="",
        mlflow_run="",
        metrics={},
        proofs=(),
    )
    bundle.save(staging)
    calibration = list(calibration_inputs(texts[:CALIBRATION_TEXTS], staging / TOKENIZER, bundle))
    for variant in int8_variants():
        progress(f"quantising for {variant}")
        quantize(variant, staging / FLOAT_GRAPH, calibration, staging)
    with ExitStack() as stack:
        engines = {}
        for variant in (*float_variants(), *int8_variants()):
            progress(f"loading {variant}")
            engines[variant] = stack.enter_context(Engine(staging, variant, usable_cores()))
        progress("comparing their speeds")
        speeds = measure_speeds(engines, texts)
    proofs = [unmeasured_proof(variant, tokens_per_s=speed) for variant, speed in speeds.items()]
    replace(bundle, proofs=refuse_slow_int8(proofs)).save(staging)
    repository.publish(staging, 1)
    repository.deploy(1)
    return BenchmarkModel(description, repository, 1, saved)


def refuse_slow_int8(proofs: Sequence[Proof]) -> tuple[Proof, ...]:
    """Refuse int8 variants that are not clearly faster than the fastest float variant, as the export does."""
    fastest = max((proof for proof in proofs if proof.precision != INT8), key=lambda proof: proof.tokens_per_s)

    return tuple(
        replace(proof, refused=too_slow(proof, fastest)) if proof.precision == INT8 else proof for proof in proofs
    )


def _millions(model: PreTrainedModel) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"
