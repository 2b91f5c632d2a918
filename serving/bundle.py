"""A version of the model as it lies in the repository: graphs, tokenizer and `bundle.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import PipelineError
from serving.runtime import FLOAT_GRAPH, Precision, RuntimeName, Variant

TOKENIZER = "tokenizer.json"
DESCRIPTION = "bundle.json"


@dataclass(frozen=True)
class Proof:
    """How a variant answered when the version was exported, and whether it may serve."""

    runtime: RuntimeName
    precision: Precision
    arithmetic: str
    """Of the processor that it was tried on; see `processor.arithmetic`."""
    texts: int
    mixes: int
    """Ways in which the texts were divided into requests."""
    label_agreement: float
    """Share of texts with the reference's label, in the worst mix. A float graph's reference is torch in float32, an
    int8 graph's the float graph."""
    confident_agreement: float
    """The same, of the texts for whose label the reference gives 0.9 or more."""
    largest_difference: float
    """Of a probability, from the reference's."""
    largest_spread: float
    """Of a text's probability, between two mixes."""
    accuracy: float
    macro_f1: float
    """On the validation texts."""
    tokens_per_s: float
    """On all cores of the machine that it was tried on."""
    refused: str = ""
    """Why it may not serve."""
    steady: float = 1.0
    """Share of texts whose probabilities differ by no more than 0.05 between two mixes. Versions that were published
    before this was measured do not tell it."""

    @property
    def variant(self) -> Variant:
        """What was tried."""
        return Variant(self.runtime, self.precision)


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
    """On the validation texts, through the variant that serves on the machine that it was exported on."""
    proofs: tuple[Proof, ...]
    """One for each variant that was tried."""

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
        missing = [name for name in (FLOAT_GRAPH, TOKENIZER, DESCRIPTION) if not (directory / name).is_file()]
        if missing:
            raise PipelineError(f"{directory} is no complete version: {', '.join(missing)} missing.")
        try:
            fields: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
            proofs = tuple(Proof(**proof) for proof in fields["proofs"])
            return cls(**{**fields, "labels": tuple(fields["labels"]), "proofs": proofs})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PipelineError(f"{directory / DESCRIPTION} is damaged: {error}.") from error
