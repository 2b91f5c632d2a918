import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from gateway.http.schemas import Health, Predictions
from tests.gateway.conftest import until
from tests.gateway.fake_triton import FakeTriton

MODELS: dict[str, type[BaseModel]] = {"Health": Health, "Predictions": Predictions}
PROBLEMS = ("400", "401", "403", "413", "415", "421", "422", "429", "503", "504")


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = http.get("/openapi.json").json()
    return document


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def test_no_object_has_a_key_twice(http: httpx.Client) -> None:
    """Swagger UI shows nothing then, and other readers lose one of both."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        assert len(found) == len(pairs), [name for name, _ in pairs]
        return found

    json.loads(http.get("/openapi.json").text, object_pairs_hook=unique)


def test_every_reference_leads_to_a_component(document: dict[str, Any]) -> None:
    references = {node["$ref"] for node in nodes(document) if "$ref" in node}
    assert references == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


@pytest.mark.usefixtures("triton")
def test_every_example_is_answered_as_documented(http: httpx.Client, document: dict[str, Any]) -> None:
    until(lambda: http.get("/health/ready").is_success)
    for path in ("/predict/live", "/predict/batch", "/health/live", "/health/ready"):
        for method, operation in document["paths"][path].items():
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            name = schema["$ref"].rpartition("/")[2] if schema else None
            for example in document["components"]["schemas"][name]["examples"] if name else [None]:
                response = http.request(method, path, json=example)
                documented = operation["responses"]["200"]
                content = documented["content"]["application/json"]
                model = MODELS[content["schema"]["$ref"].rpartition("/")[2]]
                assert response.status_code == 200
                model.model_validate_json(response.content, strict=True)
                model.model_validate(content["example"])
                required = {name for name, header in documented.get("headers", {}).items() if header.get("required")}
                assert required <= {name.title() for name in response.headers}


def test_operations_are_grouped_by_the_key_that_they_need(document: dict[str, Any]) -> None:
    groups = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert list(groups)[:3] == ["Predictions", "Sending feedback", "Health"]
    for methods in document["paths"].values():
        for operation in methods.values():
            (group,) = operation["tags"]
            security = operation.get("security", [{}])
            scopes = {scope for scheme in security for names in scheme.values() for scope in names}
            needed = f"A key with the scope `{scopes.pop()}` is needed." if {} not in security else "No key is needed."
            assert groups[group] == needed
    assert list(document["paths"])[:2] == ["/predict/live", "/predict/batch"]


def test_each_prediction_documents_its_problems(document: dict[str, Any]) -> None:
    for path in ("/predict/live", "/predict/batch"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {
            *["200", "400", "401", "403", "413", "415", "421", "422", "429", "503", "504"],
            "default",
        }
        assert all(
            list(response["content"]) == ["application/problem+json"]
            for status, response in responses.items()
            if status != "200"
        )


def test_refusals_say_when_to_come_again(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            if path in ("/health/live", "/health/ready", "/metrics"):
                assert ("429" in responses) == (path == "/metrics"), "a wrong key is refused there too"
                continue
            assert responses["429"]["headers"]["Retry-After"]["required"]
            assert responses["503"]["headers"]["Retry-After"]["required"]
            types = responses["503"]["content"]["application/problem+json"]["schema"]["properties"]["type"]["enum"]
            assert {"urn:sentiment:problem:overloaded", "urn:sentiment:problem:ending"} < set(types)


def test_docs_page(http: httpx.Client, triton: FakeTriton) -> None:
    response = http.get("/docs")
    assert response.status_code == 200
    assert "swagger" in response.text
    assert not triton.calls
