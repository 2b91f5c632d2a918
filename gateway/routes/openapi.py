"""The parts of the OpenAPI document that FastAPI cannot derive, because the routes read their bodies themselves."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.auth.access import KEY_HEADER
from gateway.http.problems import (
    MEDIA_TYPE,
    HostRefusedError,
    KeyNeededError,
    KeyNotAllowedError,
    ProblemError,
    WrongKeysError,
)
from gateway.http.schemas import BatchRequest, FeedbackRequest, LiveRequest, Problem
from gateway.routes.direct_route import DirectRoute
from storage.api_keys import Scope

_REF_TEMPLATE = "#/components/schemas/{model}"
_EXTRA_MODELS: tuple[type[BaseModel], ...] = (LiveRequest, BatchRequest, FeedbackRequest, Problem)

Json = dict[str, Any]

_GROUPS: dict[Scope | None, str] = {
    Scope.PREDICT: "Predictions",
    Scope.FEEDBACK: "Sending feedback",
    None: "Health",
    Scope.READ: "Metrics, versions, jobs and events",
    Scope.TEXTS: "Texts that users wrote",
    Scope.ADMIN: "Changes",
}
"""The group of operations that need a scope, in the order of the document."""


class DocumentedAPI(FastAPI):
    """FastAPI whose OpenAPI document also has the models of request bodies and problems, and the API keys."""

    def __init__(self, anonymous: frozenset[Scope], **named: Any) -> None:
        """Document that requests without a key have the scopes `anonymous`; `named` are FastAPI's own arguments."""
        self._anonymous = anonymous
        super().__init__(**named)

    def openapi(self) -> Json:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, extra = models_json_schema(
                [(model, "validation") for model in _EXTRA_MODELS], ref_template=_REF_TEMPLATE
            )
            document["components"]["schemas"] |= extra["$defs"]
            document["components"]["securitySchemes"] = {
                "ApiKey": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
                "Bearer": {"type": "http", "scheme": "bearer"},
            }
            for route in self.routes:
                if isinstance(route, DirectRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        self._document_access(document["paths"][route.path_format][method.lower()], route.scope)
            document["tags"] = [{"name": name, "description": self._who_may(scope)} for scope, name in _GROUPS.items()]
            ranks = {name: rank for rank, name in enumerate(_GROUPS.values())}
            document["paths"] = dict(
                sorted(
                    document["paths"].items(),
                    key=lambda item: min(ranks[operation["tags"][0]] for operation in item[1].values()),
                )
            )
        return super().openapi()

    @cached_property
    def openapi_json(self) -> bytes:
        """The encoded OpenAPI document, cached because requests for it need no key and must be cheap."""
        return json.dumps(self.openapi(), ensure_ascii=False, separators=(",", ":")).encode()

    def _who_may(self, needed: Scope | None) -> str:
        """Return who may use the operations that need the scope `needed`."""
        if needed is None or needed in self._anonymous:
            return "No key is needed."
        return f"A key with the scope `{needed.value}` is needed."

    def _document_access(self, operation: Json, needed: Scope | None) -> None:
        operation["tags"] = [_GROUPS[needed]]
        responses = operation["responses"]
        responses |= problem_responses(HostRefusedError)
        if needed is not None:
            schemes: list[Json] = [{"ApiKey": [needed.value]}, {"Bearer": [needed.value]}]
            operation["security"] = [{}, *schemes] if needed in self._anonymous else schemes
            responses |= problem_responses(KeyNeededError, KeyNotAllowedError)
            for status, response in problem_responses(WrongKeysError).items():
                responses.setdefault(status, response)


def request_body(model: type[BaseModel]) -> Json:
    """Return the description of a JSON request body of `model`, for `openapi_extra`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _reference(model)}}}}


def parameter(place: str, name: str, schema: Json, description: str = "", required: bool = False) -> Json:
    """Return the description of a route's parameter."""
    return {"in": place, "name": name, "required": required, "schema": schema, "description": description}


def problem_responses(*kinds: type[ProblemError]) -> dict[int | str, Json]:
    """Return the descriptions of a route's problem responses, with a default for all others, for `responses`."""
    by_status: dict[str, list[type[ProblemError]]] = {}
    for kind in kinds:
        # As in FastAPI's document: a number and the same number as a string would be two keys, alike in JSON.
        by_status.setdefault(str(kind.status), []).append(kind)
    responses: dict[int | str, Json] = {status: _problem_response(of_status) for status, of_status in by_status.items()}
    responses["default"] = {
        "description": "Any other problem",
        "content": {MEDIA_TYPE: {"schema": _reference(Problem)}},
    }
    return responses


def _problem_response(kinds: Sequence[type[ProblemError]]) -> Json:
    """Return the description of all problems with one status."""
    types = {"enum": [kind.type for kind in kinds]} if len(kinds) > 1 else {"const": kinds[0].type}
    return {
        "description": "; or: ".join(kind.title for kind in kinds),
        "content": {MEDIA_TYPE: {"schema": {**_reference(Problem), "properties": {"type": types}}}},
        "headers": {
            name: {"schema": _header_schema(name, value), "required": all(name in kind.headers for kind in kinds)}
            for kind in kinds
            for name, value in kind.headers.items()
        },
    }


def _header_schema(name: str, value: str) -> Json:
    if name == "Retry-After":
        return {"type": "integer", "minimum": 1, "description": "Seconds."}
    return {"type": "string", "const": value}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _REF_TEMPLATE.format(model=model.__name__)}
