"""Makes what a run serves: a repository with a deployed version, and its weights as `transformers` saves them."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import pypi_download
from benchmarks.texts import REVIEWS, text_set
from errors import PipelineError
from export.int8 import CALIBRATION_TEXTS, calibration_inputs, quantize
from export.packed_graph import export_packed_graph
from export.variants import measure_speeds, too_slow
from serving.bundle import TOKENIZER, Bundle, Proof
from serving.choice import Choice, Wanted, choose_variant
from serving.engine import Engine, load_tokenizer
from serving.processor import arithmetic, usable_cores
from serving.repository import ModelRepository
from serving.runtime import FLOAT_GRAPH, INT8, Variant, float_variants, int8_variants
from settings import load_settings
from trainer.base_model import silence_loading
from trainer.record import TrainingRecord

ModelKind = Literal["packaged", "bert-base", "deployed"]
MODEL_KINDS: tuple[ModelKind, ...] = get_args(ModelKind)

_LABELS = ("Negative", "Positive")
_MAX_LENGTH = 512
_UNTRAINED = (
    "untrained weights: the speed is a trained model's; the accuracy gates are set aside, so that an int8 graph serves "
    "where it is faster"
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkModel:
    """One set of weights in the two forms that servers read."""

    description: str
    repository: ModelRepository
    """A copy that is the run's own; `version` is deployed in it."""
    version: int
    transformers: Path
    """Directory that `from_pretrained` reads."""

    @property
    def directory(self) -> Path:
        """The version's bundle."""
        return self.repository.version_directory(self.version)

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, which does not pad, and cuts where the model does."""
        return load_tokenizer(self.directory / TOKENIZER, Bundle.load(self.directory).max_length)

    def choice(self) -> Choice:
        """The variant that the pipeline's backend serves by its default settings, and why."""
        return choose_variant(Bundle.load(self.directory), Wanted())

    def variants(self) -> list[Variant]:
        """Every variant that runs on this processor and that the bundle has the graph of, also those refused."""
        return [*float_variants(), *(int8 for int8 in int8_variants() if (self.directory / int8.graph).is_file())]

    def refusals(self) -> list[str]:
        """Which variants may not serve on this processor, and why."""
        proofs = Bundle.load(self.directory).proofs
        here = [proof for proof in proofs if proof.refused and proof.arithmetic == arithmetic()]
        return [f"{proof.variant} does not serve. {proof.refused}" for proof in here]

    def publish_again(self, version: int) -> None:
        """Publish the same bundle as another version, which is not deployed by that."""
        staging = self.repository.staging_directory(version)
        shutil.copytree(self.directory, staging, dirs_exist_ok=True)
        replace(Bundle.load(staging), version=version).save(staging)
        self.repository.publish(staging, version)


def make_model(kind: ModelKind, directory: Path, progress: Progress) -> BenchmarkModel:
    """Make the model of a kind in `directory`.

    `packaged` is the packaged encoder with an untrained head and `bert-base` an untrained BERT of base size, both with
    every graph; `deployed` is what this checkout has trained and deployed, with the graphs that its export has proven.

    Raises:
        PipelineError: the packaged encoder cannot be fetched, or nothing that fits together is deployed.
    """
    silence_loading()
    if kind == "deployed":
        return _deployed(directory)
    torch.manual_seed(0)
    encoder = packaged_encoder()
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
    texts = text_set(REVIEWS, load_tokenizer(saved / TOKENIZER, _MAX_LENGTH))
    return publish_untrained(model, saved, directory, description, texts, progress)


def publish_untrained(
    model: PreTrainedModel, saved: Path, directory: Path, description: str, texts: Sequence[str], progress: Progress
) -> BenchmarkModel:
    """Publish and deploy `model`, whose tokenizer is in `saved`, in a repository under `directory`.

    The int8 graphs are calibrated on some of the texts. Every variant's speed is measured, and no accuracy.
    """
    repository = ModelRepository(directory / "triton_repo")
    staging = repository.staging_directory(1)
    progress("exporting the float graph")
    export_packed_graph(model, 1.0, staging / FLOAT_GRAPH)
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
    proofs = [_ungated_proof(variant, speed) for variant, speed in speeds.items()]
    replace(bundle, proofs=refuse_slow_int8(proofs)).save(staging)
    repository.publish(staging, 1)
    repository.deploy(1)
    return BenchmarkModel(description, repository, 1, saved)


def refuse_slow_int8(proofs: Sequence[Proof]) -> tuple[Proof, ...]:
    """Refuse the int8 variants that are little faster than the fastest float one, as the export does."""
    fastest = max((proof for proof in proofs if proof.precision != INT8), key=lambda proof: proof.tokens_per_s)

    return tuple(
        replace(proof, refused=too_slow(proof, fastest)) if proof.precision == INT8 else proof for proof in proofs
    )


def _ungated_proof(variant: Variant, tokens_per_s: float) -> Proof:
    """A proof of the speed alone; that no text was tried says that the rest is unknown."""
    return Proof(
        runtime=variant.runtime,
        precision=variant.precision,
        arithmetic=arithmetic(),
        texts=0,
        mixes=0,
        label_agreement=0.0,
        confident_agreement=0.0,
        largest_difference=0.0,
        largest_spread=0.0,
        accuracy=0.0,
        macro_f1=0.0,
        tokens_per_s=tokens_per_s,
    )


def _deployed(directory: Path) -> BenchmarkModel:
    settings = load_settings()
    source = ModelRepository(settings.model_repository)
    version = source.deployed()
    if version is None:
        raise PipelineError("No model is deployed; run `python app.py` to train and export one.")
    record = TrainingRecord.load(settings.model_dir)
    if record.version != version:
        raise PipelineError(
            f"Version {version} is deployed, but {settings.model_dir} holds version {record.version}, so the "
            "baselines would run with other weights; deploy that one, or measure --model packaged."
        )
    copy = directory / "triton_repo"
    shutil.copytree(source.version_directory(version), ModelRepository(copy).version_directory(version))
    shutil.copy(source.model / "config.pbtxt", ModelRepository(copy).model)
    description = f"version {version}, trained from {record.base_model}"
    return BenchmarkModel(description, ModelRepository(copy), version, settings.model_dir.resolve())


def packaged_encoder() -> Path:
    """Directory of the packaged encoder, which is fetched where it is not there yet."""
    [directory] = pypi_download.unpack(pypi_download.fetch(pypi_download.ENCODER)).glob("*/model")
    return directory


def _millions(model: PreTrainedModel) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"
