"""Reads JSON files that another release of the pipeline may have written."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read_object(kind: type[T], value: dict[str, Any]) -> T:
    """Create a dataclass object from the content of a JSON file.

    Unknown fields are ignored: a newer release may have added them, and its files must stay usable after a downgrade.
    A known field is never converted to its type.

    Raises:
        ValueError: a field is missing or has another type; the message names the first one.
    """
    try:
        # Validated from JSON text, because strict validation accepts a list for a tuple only there.
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{place}: {problem['msg']}" if place else problem["msg"]) from error
