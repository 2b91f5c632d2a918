"""A version of the model as it lies in the repository: graph, tokenizer and `bundle.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import PipelineError

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
DESCRIPTION = "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """What `bundle.json` says of a version; complete and immutable once published."""

    version: int
    labels: tuple[str, ...]
    """In the order of the graph's probabilities."""
    max_length: int
    """Longest text in tokens; what is over it is cut."""
    padding_token: int
    base_model: str
    data_fingerprint: str
    mlflow_run: str
    metrics: dict[str, float]
    """On the validation texts, through the graph and the runtime that will serve it."""
    parity: dict[str, dict[str, float]]
    """By runtime: how the graph's answers agree with torch's."""

    def save(self, directory: Path) -> None:
        """Write `bundle.json` into `directory`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "Bundle":
        """Read the bundle in `directory`.

        Raises:
            PipelineError: a file of it is missing or damaged.
        """
        missing = [name for name in (GRAPH, TOKENIZER, DESCRIPTION) if not (directory / name).is_file()]
        if missing:
            raise PipelineError(f"{directory} is no complete version: {', '.join(missing)} missing.")
        try:
            fields: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
            return cls(**{**fields, "labels": tuple(fields["labels"])})
        except (ValueError, TypeError, KeyError) as error:
            raise PipelineError(f"{directory / DESCRIPTION} is damaged: {error}.") from error
