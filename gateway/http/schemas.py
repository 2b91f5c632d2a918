"""The bodies as pydantic models for the OpenAPI document. `validation.py` and `problems.py` check and make them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from gateway.http.validation import MAX_TEXTS
from serving.model_repo.texts import MAX_CHARACTERS

_VISIBLE = (
    r"[^\s\u0000-\u001f\u007f-\u009f\u2800\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8]"
)
"""A visible character according to `validation.py`, without those outside the basic plane: JSON Schema's dialects write
them in different ways."""

Text = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_CHARACTERS,
        description="A text with at least one visible character.",
        json_schema_extra={"pattern": _VISIBLE},
    ),
]
Position = Annotated[str, Field(pattern="^(0|[1-9][0-9]*)$")]


class _Closed(BaseModel):
    """An object without other fields than those of its class."""

    model_config = ConfigDict(extra="forbid")


class LiveRequest(_Closed):
    """One text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "I love this product!"}]})

    text: Text


class BatchRequest(_Closed):
    """A list of texts."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["I love this product!", "This is terrible."]}]}
    )

    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class FeedbackRow(_Closed):
    """A text and its right label."""

    text: Text
    label: Annotated[str, Field(min_length=1, description="One of the model's labels, in any letter case.")]


class FeedbackList(_Closed):
    """A list of texts and their right labels."""

    feedback: Annotated[list[FeedbackRow], Field(min_length=1, max_length=MAX_TEXTS)]


class FeedbackRequest(RootModel[FeedbackRow | FeedbackList]):
    """One text with its right label, or a list of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "I love this product!", "label": "Positive"},
                {"feedback": [{"text": "This is terrible.", "label": "Negative"}]},
            ]
        }
    )


class FeedbackAccepted(_Closed):
    """Feedback was stored."""

    accepted: Annotated[int, Field(description="Number of stored rows.")]


class StoredFeedback(BaseModel):
    """A row of feedback."""

    id: int
    text: Annotated[str, Field(description="The text; empty if it was erased.")]
    label: str
    source: Annotated[str, Field(examples=["key:website"])]
    held_out: Annotated[bool, Field(description="True: for evaluation, if the source is trusted. False: for training.")]
    received_at: datetime
    withdrawn_at: datetime | None


class FeedbackSource(BaseModel):
    """A source of feedback."""

    source: Annotated[str, Field(examples=["key:website"])]
    trusted: Annotated[bool, Field(description="Models are evaluated on its feedback.")]
    quarantined: Annotated[bool, Field(description="It is excluded from training and evaluation.")]
    reason: Annotated[str, Field(description="Reason of the last quarantine or release.")]
    rows: Annotated[int, Field(description="Number of its rows that are not withdrawn.")]
    bytes: Annotated[int, Field(description="Size of its stored rows; withdrawn ones count until they are erased.")]


class Withdrawn(BaseModel):
    """Feedback was withdrawn."""

    withdrawn: Annotated[int, Field(description="Number of withdrawn rows; 0 if they already were.")]


class Columns(_Closed):
    """Labels and scores by the position of the text."""

    label: dict[Position, str]
    score: dict[Position, Annotated[float, Field(ge=0, le=1, description="Calibrated probability, 4 decimals.")]]


class Predictions(_Closed):
    """The response to a prediction request."""

    predictions: Columns


class TextToLabel(BaseModel):
    """A random live text that waits for a label."""

    id: Annotated[str, Field(description="A hash of the text, to skip it.")]
    text: str


class Standing(BaseModel):
    """What the labels of random live texts say about the deployed version."""

    summary: Annotated[str, Field(description="The figures in words.")]
    version: int
    texts: Annotated[int, Field(description="Texts that were drawn, without skipped ones.")]
    since: Annotated[datetime, Field(alias="from", description="Time of the earliest of these texts.")]
    until: Annotated[datetime, Field(alias="to", description="Time of the latest of these texts.")]
    labels: Annotated[int, Field(description="Labels that count: up to the first text that waits for one.")]
    skipped: int
    accuracy: Annotated[
        list[float] | None,
        Field(description="Estimate, low and high end; each end is right with a probability of 95 %, at any moment."),
    ]
    macro_f1: float | None
    threshold: Annotated[float, Field(description="`SENTIMENT_MIN_ACCURACY`.")]
    under: Annotated[bool | None, Field(description="Whether accuracy is under it; null until the labels decide.")]
    more: Annotated[int | None, Field(description="About how many more labels decide.")]


class Labelling(BaseModel):
    """Texts to label, and what the labels say so far."""

    standing: Annotated[Standing | None, Field(description="Null if there are too few live texts to draw from.")]
    texts: list[TextToLabel]


class Health(_Closed):
    """The result of a health check."""

    status: str
    warnings: list[str] = Field([], description="Problems that an operator should fix; absent if there are none.")


class GateVerdict(BaseModel):
    """The result of a gate for a version."""

    gate: str
    passed: bool
    message: str
    figures: dict[str, Any]


class TimeServed(BaseModel):
    """A time during which a version was deployed."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Annotated[datetime, Field(alias="from")]
    to: datetime | None
    reason: str


class Release(BaseModel):
    """A shadow or canary release."""

    version: int
    champion: Annotated[int, Field(description="The version deployed meanwhile.")]
    mode: Annotated[str, Field(description="shadow or canary.")]
    state: Annotated[str, Field(description="running, promoted, stopped or taken-back.")]
    reason: Annotated[str, Field(description="Who or what requested it.")]
    outcome: Annotated[str, Field(description="Why it ended.")]
    held: Annotated[
        str, Field(description="Reason why it stays at its step until an administrator decides; empty if not held.")
    ]
    steps: Annotated[list[float], Field(description="Its shares of live texts, step by step.")]
    share: Annotated[float, Field(description="Its current share of live texts, 0 to 1.")]
    started_at: datetime
    step_started_at: datetime
    ended_at: datetime | None
    figures: Annotated[dict[str, Any], Field(description="Counts, summed over all gateways.")]


class Difference(BaseModel):
    """A live text that the two versions label differently."""

    at: datetime
    text: Annotated[str | None, Field(description="Null if texts are not stored.")]
    text_hash: str
    champion_label: str
    champion_score: float
    challenger_label: str
    challenger_score: float


class RowCounts(BaseModel):
    """What became of the rows of a data file."""

    rows: int
    kept: int
    repetitions: Annotated[int, Field(description="Rows that repeat the text and the label of another row.")]
    rejected: Annotated[dict[str, int], Field(description="Rows that cannot be used, by reason.")]


class FirstStage(BaseModel):
    """A smaller model that decides the texts it is sure of; the full model decides the others."""

    origin: Annotated[str, Field(description="How it was made.")]
    threshold: Annotated[float, Field(description="Minimum probability of its label at which it decides a text.")]
    share: Annotated[float, Field(description="Share of the test texts that it decides.")]
    limit: Annotated[
        float, Field(description="Maximum share of texts with another label than by the full model (95 % confidence).")
    ]
    disagreement: Annotated[float, Field(description="Upper bound of that share by the test texts alone.")]
    texts: Annotated[int, Field(description="Number of test texts that the bound rests on.")]
    gain: Annotated[float, Field(description="Speed of both stages relative to the full model, when it was exported.")]


class Model(BaseModel):
    """A version of the model."""

    version: int
    aliases: list[str]
    published: Annotated[bool, Field(description="It is in the model repository and can be promoted.")]
    base_model: str
    quick: Annotated[bool, Field(description="A quick first version, which the full training is to replace.")]
    updates: Annotated[
        int, Field(description="Number of updates since the last full training; 0 if it was trained fully.")
    ]
    packed: Annotated[bool, Field(description="Several texts share a row of its graphs, which saves computation.")]
    first_stage: Annotated[FirstStage | None, Field(description="Its first stage, if it has two stages.")]
    labels: list[str]
    metrics: dict[str, float]
    summary: Annotated[str, Field(description="How its last check found it, in a sentence; empty without one.")]
    baseline: Annotated[
        dict[str, float], Field(description="Metrics of TF-IDF with logistic regression on the same texts.")
    ]
    data_fingerprint: str
    data: Annotated[
        dict[str, RowCounts],
        Field(
            description="Rows of its data files, `train` and `val`. Without a validation file, `held_out` are texts of "
            "`train` that are used for validation. Empty if not known."
        ),
    ]
    mlflow_run: str
    feedback: Annotated[dict[str, int], Field(description="Rows of feedback in its training data, by source.")]
    feedback_metrics: Annotated[
        dict[str, float],
        Field(description="Metrics on held-out feedback: of its last check, or else of the gates; empty if not known."),
    ]
    gates: list[GateVerdict]
    release: Annotated[Release | None, Field(description="Its last shadow or canary release.")]
    served: list[TimeServed]


class Serving(BaseModel):
    """The deployed version."""

    version: int


class Job(BaseModel):
    """A check or a retraining."""

    id: int
    kind: str
    state: Annotated[str, Field(description="queued, running, succeeded, rejected, skipped, failed or cancelled.")]
    reason: Annotated[str, Field(description="Who or what requested it.")]
    step: Annotated[str, Field(description="The current step.")]
    attempts: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    result: dict[str, Any]
    error: str


class Event(BaseModel):
    """Something that the pipeline did."""

    id: int
    at: datetime
    kind: str
    message: str
    figures: dict[str, Any]
    version: int | None
    job_id: int | None


class WrongField(BaseModel):
    """An invalid field of the request."""

    field: Annotated[str, Field(examples=["texts[3]"])]
    message: Annotated[str, Field(examples=["is an integer; a string is needed"])]


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: Annotated[str, Field(description="Identifies the kind of problem; it never changes.")]
    title: str
    status: int
    detail: str
    errors: Annotated[list[WrongField], Field(description="The invalid fields, if there are any.")] = []
