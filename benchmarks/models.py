"""Makes what a run serves: a repository with a deployed version, and its weights as `transformers` saves them."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import pypi_download
from errors import PipelineError
from export.packed_graph import export_packed_graph
from serving.bundle import GRAPH, TOKENIZER, Bundle
from serving.processor import usable_cores
from serving.repository import ModelRepository
from settings import load_settings
from trainer.base_model import silence_loading
from trainer.record import TrainingRecord

ModelKind = Literal["packaged", "bert-base", "deployed"]
MODEL_KINDS: tuple[ModelKind, ...] = get_args(ModelKind)

_LABELS = ("Negative", "Positive")
_MAX_LENGTH = 512
_UNTRAINED = "untrained weights: the speed is a trained model's, the accuracy gates are set aside"


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
        tokenizer = Tokenizer.from_file(str(self.directory / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(Bundle.load(self.directory).max_length)
        return tokenizer

    def publish_again(self, version: int) -> None:
        """Publish the same bundle as another version, which is not deployed by that."""
        staging = self.repository.staging_directory(version)
        shutil.copytree(self.directory, staging, dirs_exist_ok=True)
        replace(Bundle.load(staging), version=version).save(staging)
        self.repository.publish(staging, version)


def make_model(kind: ModelKind, directory: Path) -> BenchmarkModel:
    """Make the model of a kind in `directory`.

    `packaged` is the packaged encoder and `bert-base` a BERT of base size, both with an untrained head;
    `deployed` is what this checkout has trained and deployed, with every graph that its export has proven.

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
    return publish_untrained(model, saved, directory, description)


def publish_untrained(model: PreTrainedModel, saved: Path, directory: Path, description: str) -> BenchmarkModel:
    """Publish and deploy `model`, whose tokenizer is in `saved`, in a repository under `directory`, ungated."""
    repository = ModelRepository(directory / "triton_repo")
    staging = repository.staging_directory(1)
    export_packed_graph(model, 1.0, staging / GRAPH)
    shutil.copyfile(saved / TOKENIZER, staging / TOKENIZER)
    Bundle(
        version=1,
        labels=_LABELS,
        max_length=min(_MAX_LENGTH, model.config.max_position_embeddings),
        padding_token=model.config.pad_token_id,
        base_model=description,
        data_fingerprint="",
        mlflow_run="",
        metrics={},
        parity={},
    ).save(staging)
    repository.publish(staging, 1)
    repository.deploy(1, instances=usable_cores())
    return BenchmarkModel(description, repository, 1, saved)


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
