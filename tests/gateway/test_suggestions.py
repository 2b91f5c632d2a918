"""`GET /feedback/suggestions`: the texts are told, once they are found out, and no longer than they have no label."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from errors import PipelineError
from gateway import suggester
from gateway.schemas import Suggestions
from storage.tables import Figures
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.test_feedback import Gateway, gateway_with_models
from tests.gateway.test_wrong_requests import assert_problem
from tests.sampled_texts import asked, unlike

SUGGESTIONS = "/feedback/suggestions"


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
    first = suggested(gateway.http.get(SUGGESTIONS, params={"limit": 10}))
    assert len(first) == 10
    assert set(first) < set(texts)
    row = {"text": first[0], "label": "Positive"}
    assert gateway.http.post("/feedback", json=row).status_code == 201
    assert suggested(gateway.http.get(SUGGESTIONS, params={"limit": 9})) == first[1:]


def test_where_nothing_was_sampled_nothing_is_suggested(gateway: Gateway) -> None:
    assert gateway.http.get(SUGGESTIONS).json() == {"considered": 0, "suggestions": []}


@pytest.mark.parametrize("limit", ["0", "301", "ten", "-1", ""])
def test_a_limit_is_a_number_from_1_to_300(gateway: Gateway, limit: str) -> None:
    problem = assert_problem(gateway.http.get(SUGGESTIONS, params={"limit": limit}), 422, "invalid-fields")
    assert problem["errors"] == [{"field": "limit", "message": f"is {limit!r}; a whole number from 1 to 300 is needed"}]


def test_they_are_found_out_once_for_all_who_ask_and_who_waits_too_long_asks_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, calls = threading.Event(), []

    def slow(*_: object) -> Figures:
        calls.append(1)
        assert may_end.wait(60)
        return {"considered": 0, "suggestions": []}

    monkeypatch.setattr(suggester, "suggest_apart", slow)
    monkeypatch.setattr(suggester, "LONGEST_WAIT_S", 0.2)
    for _ in range(2):
        response = gateway.http.get(SUGGESTIONS)
        assert_problem(response, 503, "storage-unavailable")
        assert response.headers["retry-after"] == "5"
    monkeypatch.setattr(suggester, "LONGEST_WAIT_S", 60)
    may_end.set()
    assert suggested(gateway.http.get(SUGGESTIONS)) == []
    assert suggested(gateway.http.get(SUGGESTIONS)) == []
    assert calls == [1]


def test_what_cannot_be_found_out_is_told_and_tried_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Figures:
        raise PipelineError("It cannot be found out.")

    with monkeypatch.context() as patch:
        patch.setattr(suggester, "suggest_apart", fail)
        problem = assert_problem(gateway.http.get(SUGGESTIONS), 503, "storage-unavailable")
        assert problem["detail"] == "It cannot be found out."
    asked(gateway.database, unlike(5))
    assert len(suggested(gateway.http.get(SUGGESTIONS))) == 5
