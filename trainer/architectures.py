"""The families of encoders: which of them can be packed, and which positions their tokens have."""

from collections.abc import Mapping
from typing import Any

from common.errors import PipelineError

PACKED_FAMILIES = (
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "mpnet",
    "albert",
    "deberta-v2",
    "modernbert",
)
"""Families, named as in `config.json` (`model_type`), whose graph lets several texts share a row. DeBERTa-v3 models are
of the family `deberta-v2`."""

OTHER_FAMILY = f"of another family, best of one that can be packed: {', '.join(PACKED_FAMILIES)}"
"""End of a message about a model that cannot be served, such as `Choose one …`."""

_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raise a PipelineError if a model with this `config.json` cannot be trained and exported."""
    if config.get("is_encoder_decoder"):
        raise PipelineError(
            f"Models of the family {config['model_type']!r} have an encoder and a decoder, and only encoders can be "
            f"served. Choose an encoder, best of a family that can be packed: {', '.join(PACKED_FAMILIES)}."
        )


def why_unpacked(config: Mapping[str, Any]) -> str:
    """Return why the texts of a model with this `config.json` cannot share rows; empty if they can."""
    family = config["model_type"]
    if family not in PACKED_FAMILIES:
        return f"the family {family!r} is not among those that can be packed"
    if config.get("is_decoder"):
        return "a decoder's attention depends on the order of the texts in a row"
    if config.get("conv_kernel_size", 0) > 0:
        return "its convolution mixes neighbouring tokens, also those of different texts"
    return ""


def first_position(config: Mapping[str, Any]) -> int:
    """Return the position of a text's first token in the position embeddings of a packed family."""
    if config["model_type"] not in _POSITIONS_AFTER_PADDING:
        return 0
    # MPNet's code has a fixed padding index, whatever the configuration says.
    return 2 if config["model_type"] == "mpnet" else int(config["pad_token_id"]) + 1
