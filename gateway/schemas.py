"""The bodies as pydantic models, for the OpenAPI document: `texts.py` and `problems.py` check and make them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from gateway.texts import MAX_TEXTS
from serving.texts import MAX_CHARACTERS

_VISIBLE = (
    r"[^\s\u0000-\u001f\u007f-\u009f\u2800\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8]"
)
"""A visible character as `texts.py` knows it, but for the few of other planes: JSON Schema's dialects write those in
different ways."""

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


class LiveRequest(BaseModel):
    """One text."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "I love this product!"}]})

    text: Text


class BatchRequest(BaseModel):
    """A list of texts."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"texts": ["I love this product!", "This is terrible."]}]},
    )

    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class FeedbackRow(BaseModel):
    """A text and its right label."""

    model_config = ConfigDict(extra="forbid")

    text: Text
    label: Annotated[str, Field(min_length=1, description="One of the model's labels.")]


class FeedbackList(BaseModel):
    """A list of texts and their right labels."""

    model_config = ConfigDict(extra="forbid")

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


class FeedbackAccepted(BaseModel):
    """Feedback was kept."""

    model_config = ConfigDict(extra="forbid")

    accepted: Annotated[int, Field(description="Rows.")]


class Columns(BaseModel):
    """Labels and scores, each by the position of its text."""

    model_config = ConfigDict(extra="forbid")

    label: dict[Position, str]
    score: dict[Position, Annotated[float, Field(ge=0, le=1, description="Calibrated probability, 4 decimals.")]]


class Predictions(BaseModel):
    """The answer to a prediction request."""

    model_config = ConfigDict(extra="forbid")

    predictions: Columns


class Suggestion(BaseModel):
    """A text that should have a label."""

    text: str
    label: Annotated[str, Field(description="What the model said.")]
    score: Annotated[float, Field(ge=0, le=1, description="The probability that it gave.")]
    version: int
    at: Annotated[datetime, Field(description="When it was asked.")]
    uncertainty: Annotated[float, Field(ge=0, le=1, description="Of the answer: 1 where all labels were as likely.")]
    drift: Annotated[
        float | None,
        Field(ge=0, le=1, description="How surely it is a live text, and none as the model knows; null: not known."),
    ]


class Suggestions(BaseModel):
    """What to label next."""

    considered: Annotated[int, Field(description="Sampled texts that have no label and would be learnt from.")]
    suggestions: Annotated[list[Suggestion], Field(description="Best labelled in this order.")]


class Health(BaseModel):
    """What a health check found."""

    model_config = ConfigDict(extra="forbid")

    status: str


class GateVerdict(BaseModel):
    """What a gate found of a version."""

    gate: str
    passed: bool
    message: str
    figures: dict[str, Any]


class TimeServed(BaseModel):
    """A time during which a version served."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Annotated[datetime, Field(alias="from")]
    to: datetime | None
    reason: str


class Release(BaseModel):
    """A version that is, or was, tried on live texts beside the one that serves."""

    version: int
    champion: Annotated[int, Field(description="What serves, or served, meanwhile.")]
    mode: Annotated[str, Field(description="shadow or canary.")]
    state: Annotated[str, Field(description="running, promoted, stopped or taken-back.")]
    reason: Annotated[str, Field(description="Who or what asked for it.")]
    outcome: Annotated[str, Field(description="Why it ended.")]
    steps: Annotated[list[float], Field(description="Shares of live texts that it answers, one after another.")]
    share: Annotated[float, Field(description="The share that it answers now, 0 to 1.")]
    started_at: datetime
    step_started_at: datetime
    ended_at: datetime | None
    figures: Annotated[dict[str, Any], Field(description="Sums of what all gateways counted.")]


class Difference(BaseModel):
    """A live text to which the two versions give different labels."""

    at: datetime
    text: Annotated[str | None, Field(description="None where texts are not kept.")]
    text_hash: str
    champion_label: str
    champion_score: float
    challenger_label: str
    challenger_score: float


class Model(BaseModel):
    """A version of the model."""

    version: int
    aliases: list[str]
    published: Annotated[bool, Field(description="Whether it is in the repository, so that it can be promoted.")]
    base_model: str
    labels: list[str]
    metrics: dict[str, float]
    data_fingerprint: str
    mlflow_run: str
    gates: list[GateVerdict]
    release: Annotated[Release | None, Field(description="When it was tried on live texts last.")]
    served: list[TimeServed]


class Serving(BaseModel):
    """The version that serves."""

    version: int


class Job(BaseModel):
    """A check or a retraining."""

    id: int
    kind: str
    state: Annotated[str, Field(description="queued, running, succeeded, rejected, skipped, failed or cancelled.")]
    reason: Annotated[str, Field(description="Who or what asked for it.")]
    step: Annotated[str, Field(description="What it does now.")]
    attempts: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    result: dict[str, Any]
    error: str


class Event(BaseModel):
    """Something that the loop did."""

    id: int
    at: datetime
    kind: str
    message: str
    figures: dict[str, Any]
    version: int | None
    job_id: int | None


class WrongField(BaseModel):
    """A field of the request that is wrong."""

    field: Annotated[str, Field(examples=["texts[3]"])]
    message: Annotated[str, Field(examples=["is an integer; a string is needed"])]


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: Annotated[str, Field(description="Names the kind of problem, and never changes.")]
    title: str
    status: int
    detail: str
    errors: Annotated[list[WrongField], Field(description="Every wrong field; only where fields are wrong.")] = []
