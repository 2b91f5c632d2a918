"""The bodies as pydantic models, for the OpenAPI document: `texts.py` and `problems.py` check and make them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.texts import MAX_CHARACTERS, MAX_TEXTS

Text = Annotated[
    str,
    Field(min_length=1, max_length=MAX_CHARACTERS, description="A text with at least one visible character."),
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


class Columns(BaseModel):
    """Labels and scores, each by the position of its text."""

    model_config = ConfigDict(extra="forbid")

    label: dict[Position, str]
    score: dict[Position, Annotated[float, Field(ge=0, le=1, description="Calibrated probability, 4 decimals.")]]


class Predictions(BaseModel):
    """The answer to a prediction request."""

    model_config = ConfigDict(extra="forbid")

    predictions: Columns


class Health(BaseModel):
    """What a health check found."""

    model_config = ConfigDict(extra="forbid")

    status: str


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
