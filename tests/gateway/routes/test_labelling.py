"""`GET /feedback/suggestions`: sampled texts are suggested until they have a label."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from gateway.http.schemas import Suggestions
from tests.gateway.conftest import ADMIN_KEY
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway, gateway_with_models
from tests.gateway.routes.test_wrong_requests import assert_problem
from tests.sampled_texts import asked, unlike

SUGGESTIONS = "/feedback/suggestions"
KEY = {"X-API-Key": ADMIN_KEY}


@pytest.fixture
def gateway(triton: FakeTriton, bert_bundle: Path, tmp_path: Path) -> Iterator[Gateway]:
    with gateway_with_models(triton, tmp_path, bert_bundle) as gateway:
        yield gateway


def suggested(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    found = Suggestions.model_validate_json(response.content)
    return [item.text for item in found.suggestions]


def test_texts_of_the_sample_are_suggested_until_they_have_a_label(gateway: Gateway) -> None:
    texts = unlike(40)
    asked(gateway.database, texts)
    first = suggested(gateway.http.get(SUGGESTIONS, headers=KEY, params={"limit": 10}))
    assert len(first) == 10
    assert set(first) < set(texts)
    row = {"text": first[0], "label": "Positive"}
    assert gateway.http.post("/feedback", json=row).status_code == 201
    assert suggested(gateway.http.get(SUGGESTIONS, headers=KEY, params={"limit": 9})) == first[1:]


def test_where_nothing_was_sampled_nothing_is_suggested(gateway: Gateway) -> None:
    assert gateway.http.get(SUGGESTIONS, headers=KEY).json() == {"considered": 0, "suggestions": []}


@pytest.mark.parametrize("limit", ["0", "301", "ten", "-1", ""])
def test_a_limit_is_a_number_from_1_to_300(gateway: Gateway, limit: str) -> None:
    problem = assert_problem(gateway.http.get(SUGGESTIONS, headers=KEY, params={"limit": limit}), 422, "invalid-fields")
    assert problem["errors"] == [{"field": "limit", "message": f"is {limit!r}; a whole number from 1 to 300 is needed"}]


def test_a_database_that_does_not_answer_is_told(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("select", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr("lifecycle.monitoring.suggestions.newest_sample", fail)
        assert_problem(gateway.http.get(SUGGESTIONS, headers=KEY), 503, "storage-unavailable")
    asked(gateway.database, unlike(5))
    assert len(suggested(gateway.http.get(SUGGESTIONS, headers=KEY))) == 5
