"""The encoder architectures that can be trained and exported."""

from common.errors import PipelineError

ARCHITECTURES = ("bert", "distilbert", "roberta")


def check_architecture(model_type: str) -> None:
    """Raise a PipelineError unless a model of this type can be packed."""
    if model_type not in ARCHITECTURES:
        raise PipelineError(
            f"The architecture {model_type!r} cannot be packed; it must be one of: {', '.join(ARCHITECTURES)}."
        )
