"""A model version's files in the repository: graphs, tokenizer and `bundle.json`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from common.errors import PipelineError
from common.stored_json import read_object
from serving.model_repo.variants import FLOAT_GRAPH, Precision, RuntimeName, Variant

TOKENIZER = "tokenizer.json"
DESCRIPTION = "bundle.json"
FIRST_STAGE = "first_stage"
"""Directory inside a version's, with the bundle of the first stage, if there is one."""


@dataclass(frozen=True)
class Proof:
    """The result of testing a variant when the version was exported, and whether the variant may be used."""

    runtime: RuntimeName
    precision: Precision
    arithmetic: str
    """Instruction sets of the processor used for the test; see `serving.backend.cpu.arithmetic`."""
    texts: int
    mixes: int
    """Number of different ways in which the texts were divided into requests."""
    label_agreement: float
    """Share of texts with the reference's label, in the worst mix. The reference of a float graph is torch in float32;
    that of an int8 graph is the float graph."""
    confident_agreement: float
    """Label agreement on the texts for whose label the reference's probability is 0.9 or more."""
    largest_difference: float
    """Largest difference of a probability from the reference."""
    largest_spread: float
    """Largest difference of a text's probability between two mixes."""
    accuracy: float
    macro_f1: float
    """Accuracy and macro F1 are measured on the validation texts; without any, both are 0."""
    tokens_per_s: float
    """Throughput on all cores of the machine used for the test."""
    refused: str = ""
    """The reason why the variant must not be used; empty if it may."""
    steady: float = 1.0
    """Share of texts whose probabilities differ by at most 0.05 between mixes. Older bundles do not have this field."""
    differing: int | None = None
    """Number of texts with another label than the reference's in any mix, without near ties; None in older bundles."""
    near_ties: int = 0
    """Number of texts whose label differs only between two that the reference gives almost the same probability."""

    @property
    def variant(self) -> Variant:
        """The tested variant."""
        return Variant(self.runtime, self.precision)


@dataclass(frozen=True)
class Certificate:
    """Bounds how often the two stages of a version predict another label than the full model alone.

    The first stage, a smaller model, predicts the texts that it is sure of; the full model predicts the others.
    """

    threshold: float
    """Minimum probability of its label at which the first stage's prediction counts."""
    disagreement: float
    """Upper bound, at 95 % confidence, of the share of texts that get another label than by the full model."""
    limit: float
    """The largest bound that was allowed."""
    texts: int
    """Number of texts that the bound rests on; no stage was trained on them."""
    differing: int
    """Number of these texts that got another label."""
    share: float
    """Share of these texts that the first stage predicted."""
    gain: float
    """Texts per second of both stages, divided by those of the full model, on the machine that exported the version."""
    origin: str
    """How the first stage was made, for people."""
    first: Variant
    full: Variant
    """The variants of both stages, and the instruction sets of the processor, for which the bound holds."""
    arithmetic: str


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows of a data file."""

    rows: int
    kept: int
    repetitions: int
    """Rows that repeat the text and the label of another row."""
    rejected: dict[str, int]
    """Rows that cannot be used, by reason."""


@dataclass(frozen=True)
class Bundle:
    """The content of a version's `bundle.json`; complete and immutable once published."""

    version: int
    labels: tuple[str, ...]
    """Labels in the order of the graph's probabilities."""
    max_length: int
    """Maximum tokens of a text; longer texts are truncated."""
    padding_token: int
    base_model: str
    data_fingerprint: str
    mlflow_run: str
    metrics: dict[str, float]
    """Metrics on the validation texts, with the variant chosen for the machine that exported the version."""
    proofs: tuple[Proof, ...]
    """One proof for each tested variant."""
    training_key: str = ""
    """Hash of the training's data and settings; the same key would produce the same model. Empty in older bundles."""
    baseline: dict[str, float] = field(default_factory=dict)
    """Metrics of a simple model (TF-IDF with logistic regression) on the validation texts; empty in older bundles."""
    data: dict[str, RowCounts] = field(default_factory=dict)
    """Rows of the files `train` and `val` that the version was made from. Older bundles do not have this field."""
    quick: bool = False
    """True for a quick first version, which the full training is to replace. Older bundles do not have this field."""
    imported: bool = False
    """True for a classifier that was fine-tuned elsewhere. Older bundles do not have this field."""
    updates: int = 0
    """Updates since the last full training, as in `TrainingRecord`. Older bundles do not have this field."""
    first_stage: Certificate | None = None
    """The certificate of the first stage; None if there is none, as in older bundles."""
    packed: bool = True
    """True if several texts may share a row of the graphs; all do in older bundles, which do not have this field."""

    def save(self, directory: Path) -> None:
        """Write `bundle.json` into `directory`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "Bundle":
        """Read the bundle in `directory`, which may come from another release of this pipeline.

        Raises:
            PipelineError: a file of the bundle is missing or damaged.
        """
        missing = [name for name in (FLOAT_GRAPH, TOKENIZER, DESCRIPTION) if not (directory / name).is_file()]
        if missing:
            raise PipelineError(f"{directory} is no complete version: {', '.join(missing)} missing.")
        try:
            fields: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
            if isinstance(fields["proofs"], list):
                fields["proofs"] = [proof for proof in fields["proofs"] if not _is_of_another_release(proof)]
            first_stage = fields.get("first_stage")
            if first_stage and any(_is_of_another_release(first_stage[stage]) for stage in ("first", "full")):
                fields["first_stage"] = None  # the full model can do without it
            bundle = read_object(cls, fields)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PipelineError(f"{directory / DESCRIPTION} is damaged: {error}.") from error
        if bundle.first_stage is not None:
            cls.load(directory / FIRST_STAGE)
        return bundle


def _is_of_another_release(variant: dict[str, Any]) -> bool:
    """Return whether a variant, or a proof of one, names a runtime or precision that this release does not support."""
    known = {"runtime": get_args(RuntimeName), "precision": get_args(Precision)}
    return any(isinstance(variant[name], str) and variant[name] not in names for name, names in known.items())
